// x86_decoder.h: where in an x86 instruction a lane is, byte by byte, and which ones came before.
//
// Enough of the instruction format (Intel SDM volume 2, chapter 2 and appendix A) to follow
// lengths: prefixes, opcode, ModRM, SIB, displacement, immediate.  32 and 64 bits are not told
// apart: a REX prefix and the one-byte instruction that it is in 32 bits take the same room.  What
// is no code is followed as if it were; after some instructions the decoder is in step again.  Any
// bytes are safe.  Specified in docs/mixer.md section 6.6.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lmzip {

class X86Decoder {
 public:
  // What the next byte is.  Operands of four bytes and more count on from here, shorter ones begin
  // at kByte and kWord behind.
  enum Place : uint8_t {
    kStart,     // a prefix or an opcode
    kPrefixed,  // the same behind a prefix
    kOpcode2,   // behind 0F
    kOpcode3,   // behind 0F 38 and 0F 3A
    kVex,       // payload of a VEX or EVEX prefix
    kModRm,
    kSib,
    kDisplacement = 8,
    kImmediate = 16,
    kRelative = 24,  // of a jump or call
  };

  void follow(uint8_t byte) {
    if (place_ >= kDisplacement) return follow_operand(byte);
    code_ = (code_ + byte + 1) * 0x9E3779B1u;
    code_ ^= code_ >> 15;
    switch (place_) {
      case kOpcode2:
        return follow_opcode2(byte);
      case kOpcode3:
        opcode_ = byte;
        immediate_ = map_ == 3;
        place_ = kModRm;
        return;
      case kVex:
        return follow_vex(byte);
      case kModRm:
        return follow_mod_rm(byte);
      case kSib:
        sib_ = byte;
        if (mod_rm_ < 0x40 && (byte & 7) == 5) displacement_ = 4;
        return begin_operand();
      default:
        return follow_opcode(byte);
    }
  }

  uint32_t place() const { return place_; }
  uint32_t code() const { return code_; }        // hash of the instruction's bytes but for operands
  uint32_t operand() const { return operand_; }  // bytes of the present operand
  uint32_t last_operand() const { return last_operand_; }
  uint32_t opcode() const { return opcode_ | uint32_t{map_} << 8; }
  uint32_t address() const { return mod_rm_ | uint32_t{sib_} << 8; }
  // Opcode and, from bit 16 on, ModRM of the instructions before this one, the last first.
  const std::array<uint32_t, 4>& before() const { return before_; }

  // 0..255: the place and the group of the opcode, at the start of an instruction the last one's.
  uint32_t kind() const {
    const uint32_t opcode = place_ == kStart ? before_[0] & 0xff : map_ != 0 ? 0xff : opcode_;
    return place_ * 8u + (opcode >> 5);
  }

 private:
  static constexpr uint8_t kByte = 4, kWord = 5;

  // What follows an opcode: m ModRM; 1 2 3 6 a that many bytes, a being 4; 4 an immediate of 4
  // bytes, 2 behind the prefix 66; q the same, 8 behind REX.W; r R jumps by 1 and 4 bytes; M N
  // ModRM and then 1, 4; p the opcode was a prefix; v one with a payload; 0 the escape 0F.
  static constexpr std::string_view kForms =
      "mmmm14..mmmm14.0mmmm14..mmmm14..mmmm14p.mmmm14p.mmmm14p.mmmm14p."   // 00
      "pppppppppppppppp..................vmpppp4N1M....rrrrrrrrrrrrrrrr"   // 40
      "MNMMmmmmmmmmmmmm..........6.....aaaa....14......11111111qqqqqqqq"   // 80
      "MM2.vvMN3.2..1..mmmm11..mmmmmmmmrrrr1111RR6r....p.pp..mm......mm";  // C0
  static_assert(kForms.size() == 256);

  void follow_opcode(uint8_t byte) {
    const char form = kForms[byte];
    const uint8_t full = narrow_ ? 2 : 4;
    opcode_ = byte;
    switch (form) {
      case 'p':
        narrow_ |= byte == 0x66;
        wide_ |= (byte & 0xF8) == 0x48;
        opcode_ = 0;
        place_ = kPrefixed;
        return;
      case 'v':  // C4, C5, 62
        opcode_ = 0;
        left_ = byte == 0x62 ? 3 : byte == 0xC4 ? 2 : 1;
        map_ = left_ == 1;
        place_ = kVex;
        return;
      case '0':
        opcode_ = 0;
        place_ = kOpcode2;
        return;
      case 'm':
        place_ = kModRm;
        return;
      case 'M':
      case 'N':
        immediate_ = form == 'M' ? 1 : full;
        place_ = kModRm;
        return;
      case '1':
      case '2':
      case '3':
      case '6':
        immediate_ = static_cast<uint8_t>(form - '0');
        break;
      case 'a':
      case 'R':
        immediate_ = 4;
        break;
      case 'r':
        immediate_ = 1;
        break;
      case '4':
        immediate_ = full;
        break;
      case 'q':
        immediate_ = wide_ ? 8 : full;
        break;
      default:
        break;
    }
    relative_ = form == 'r' || form == 'R';
    begin_operand();
  }

  void follow_opcode2(uint8_t byte) {
    if (map_ == 0 && (byte == 0x38 || byte == 0x3A)) {
      map_ = byte == 0x38 ? 2 : 3;
      place_ = kOpcode3;
      return;
    }
    map_ = 1;
    opcode_ = byte;
    if ((byte & 0xF0) == 0x80) {
      relative_ = true;
      immediate_ = 4;
      return begin_operand();
    }
    const bool alone = (byte >= 0x05 && byte <= 0x0B) || (byte & 0xF8) == 0x30 || byte == 0x77 ||
                       (byte & 0xF6) == 0xA0 || byte == 0xA2 || (byte & 0xF8) == 0xC8;
    if (alone) return begin_operand();
    immediate_ = (byte & 0xFC) == 0x70 || byte == 0xA4 || byte == 0xAC || byte == 0xBA ||
                 byte == 0xC2 || (byte >= 0xC4 && byte <= 0xC6);
    place_ = kModRm;
  }

  void follow_vex(uint8_t byte) {
    if (map_ == 0) map_ = byte & 3;
    if (--left_ == 0) place_ = map_ < 2 ? kOpcode2 : kOpcode3;
  }

  void follow_mod_rm(uint8_t byte) {
    mod_rm_ = byte;
    const uint32_t mod = byte >> 6, rm = byte & 7;
    if (map_ == 0 && (opcode_ & 0xFE) == 0xF6 && (byte & 0x30) == 0)
      immediate_ = opcode_ == 0xF6 ? 1 : narrow_ ? 2 : 4;
    displacement_ = mod == 1 ? 1 : mod == 2 || (mod == 0 && rm == 5) ? 4 : 0;
    if (mod != 3 && rm == 4) {
      place_ = kSib;
    } else {
      begin_operand();
    }
  }

  void begin_operand() {
    const bool first = displacement_ != 0;
    left_ = first ? displacement_ : immediate_;
    (first ? displacement_ : immediate_) = 0;
    if (left_ == 0) return end();
    operand_ = 0;
    place_ = first ? kDisplacement : relative_ ? kRelative : kImmediate;
    if (left_ < 3) place_ = static_cast<uint8_t>(place_ + (left_ == 1 ? kByte : kWord));
  }

  void follow_operand(uint8_t byte) {
    operand_ = operand_ << 8 | byte;
    if (--left_ == 0) return begin_operand();
    ++place_;
  }

  void end() {
    if (operand_ != 0) last_operand_ = operand_;
    before_ = {opcode() | static_cast<uint32_t>(mod_rm_) << 16, before_[0], before_[1], before_[2]};
    place_ = kStart;
    code_ = operand_ = 0;
    opcode_ = mod_rm_ = sib_ = map_ = 0;
    narrow_ = wide_ = relative_ = false;
  }

  uint8_t place_ = kStart;
  uint8_t left_ = 0;                          // of the operand or the payload, in bytes
  uint8_t displacement_ = 0, immediate_ = 0;  // that are still to begin, in bytes
  uint8_t opcode_ = 0, map_ = 0, mod_rm_ = 0, sib_ = 0;
  bool narrow_ = false, wide_ = false, relative_ = false;
  uint32_t code_ = 0, operand_ = 0, last_operand_ = 0;
  std::array<uint32_t, 4> before_{};
};

}  // namespace lmzip
