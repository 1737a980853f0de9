"""x86 code in plain Python: targets made absolute (docs/format.md, section 5) and the decoder of
instructions (docs/mixer.md, section 6.6). test_x86.py and test_mixer.py hold the native ones
against it.
"""

U32 = 0xFFFFFFFF

# Targets.

SIGNS = (0, 255)  # what extends the sign of a number of 24 bits


def operand_at(data: bytes | bytearray, i: int) -> int | None:
    """Where the operand of an instruction that begins at i is to be changed, if it is."""
    a, b, c = data[i : i + 3]
    if a in (0xE8, 0xE9):
        return i + 1
    if a == 0x0F and b & 0xF0 == 0x80:
        return i + 2
    if a in (0x48, 0x4C) and b in (0x39, 0x3B, 0x89, 0x8B, 0x8D) and c & 0xC7 == 5:
        return i + 3
    return None


def wrap(x: int) -> int:
    """x modulo 2^25, as 32 bits with a sign."""
    return ((x + (1 << 24)) % (1 << 25) - (1 << 24)) & U32


def to_absolute(raw: bytes) -> bytes:
    data = bytearray(raw)
    for i in range(len(data) - 7, -1, -1):
        at = operand_at(data, i)
        if at is None:
            continue
        operand = data[at : at + 4]
        if operand[3] in SIGNS:
            target = wrap(int.from_bytes(operand, "little") + at + 4)
            data[at : at + 4] = target.to_bytes(4, "big")
        elif operand[0] in SIGNS:
            data[at : at + 4] = operand[::-1]
    return bytes(data)


def to_relative(absolute: bytes) -> bytes:
    data = bytearray(absolute)
    for i in range(len(data) - 6):
        at = operand_at(data, i)
        if at is None:
            continue
        operand = data[at : at + 4]
        if operand[0] in SIGNS:
            distance = wrap(int.from_bytes(operand, "big") - at - 4)
            data[at : at + 4] = distance.to_bytes(4, "little")
        elif operand[3] in SIGNS:
            data[at : at + 4] = operand[::-1]
    return bytes(data)


# Instructions.

START, PREFIXED, OPCODE2, OPCODE3, VEX, MOD_RM, SIB = range(7)
DISPLACEMENT, IMMEDIATE, RELATIVE = 8, 16, 24
FIRST = {1: 4, 2: 5}  # where short operands begin behind these


def _one_byte(opcode: int) -> tuple[bool, str]:
    """Whether a ModRM follows, and the immediate: bytes, z (4, or 2 behind 66), v (also 8), r R."""
    x, y = opcode >> 4, opcode & 15
    if x < 4:
        return y % 8 < 4, {4: "1", 5: "z"}.get(y % 8, "")
    if x == 7 or opcode in (0xE0, 0xE1, 0xE2, 0xE3, 0xEB):
        return False, "r"
    if opcode in (0xE8, 0xE9):
        return False, "R"
    if x == 8:
        return True, {0: "1", 1: "z", 2: "1", 3: "1"}.get(y, "")
    if x == 11:
        return False, "1" if y < 8 else "v"
    if opcode in (0xC0, 0xC1, 0x6B, 0xC6):
        return True, "1"
    if opcode in (0x69, 0xC7):
        return True, "z"
    if x == 13:
        return y not in (4, 5, 6, 7), "1" if y in (4, 5) else ""
    if opcode in (0x63, 0xF6, 0xF7, 0xFE, 0xFF):
        return True, ""
    plain = {0x68: "z", 0x6A: "1", 0x9A: "6", 0xEA: "6", 0xA8: "1", 0xA9: "z", 0xC2: "2"}
    plain |= {0xC8: "3", 0xCA: "2", 0xCD: "1", 0xE4: "1", 0xE5: "1", 0xE6: "1", 0xE7: "1"}
    plain |= {0xA0: "4", 0xA1: "4", 0xA2: "4", 0xA3: "4"}
    return False, plain.get(opcode, "")


def is_prefix(b: int) -> bool:
    return b >> 4 == 4 or b in (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)


class Decoder:
    def __init__(self) -> None:
        self.before = [0] * 4
        self.last_operand = self.operand = 0
        self._begin()

    def _begin(self) -> None:
        self.place = START
        self.code = self.opcode = self.map = self.mod_rm = self.sib = 0
        self.narrow = self.wide = self.relative = False
        self.displacement = self.immediate = self.left = 0

    def kind(self) -> int:
        opcode = self.opcode if self.map == 0 else 255
        if self.place == START:
            opcode = self.before[0] & 255
        return 8 * self.place + opcode // 32

    def follow(self, b: int) -> None:
        if self.place >= DISPLACEMENT:
            self.operand = (self.operand << 8 | b) & U32
            self.left -= 1
            self.place += 1
            if self.left == 0:
                self._operands()
            return
        self.code = ((self.code + b + 1) * 0x9E3779B1) & U32
        self.code ^= self.code >> 15
        {
            START: self._opcode,
            PREFIXED: self._opcode,
            OPCODE2: self._opcode2,
            OPCODE3: self._opcode3,
            VEX: self._vex,
            MOD_RM: self._mod_rm,
            SIB: self._sib,
        }[self.place](b)

    def _opcode(self, b: int) -> None:
        if is_prefix(b):
            self.place = PREFIXED
            self.narrow |= b == 0x66
            self.wide |= b & 0xF8 == 0x48
        elif b in (0x62, 0xC4, 0xC5):
            self.place, self.left = VEX, {0x62: 3, 0xC4: 2, 0xC5: 1}[b]
            self.map = int(b == 0xC5)
        elif b == 0x0F:
            self.place = OPCODE2
        else:
            self.opcode = b
            has_mod_rm, immediate = _one_byte(b)
            size = 2 if self.narrow else 4
            self.relative = immediate in ("r", "R")
            sizes = {"": 0, "z": size, "v": 8 if self.wide else size, "r": 1, "R": 4}
            self.immediate = sizes[immediate] if immediate in sizes else int(immediate)
            self._then(has_mod_rm)

    def _opcode2(self, b: int) -> None:
        if self.map == 0 and b in (0x38, 0x3A):
            self.place, self.map = OPCODE3, 2 if b == 0x38 else 3
            return
        self.map, self.opcode = 1, b
        if b >> 4 == 8:
            self.relative, self.immediate = True, 4
        elif 0x70 <= b <= 0x73 or b in (0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6):
            self.immediate = 1
        alone = [*range(5, 12), *range(0x30, 0x38), 0x77, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9]
        self._then(not (self.relative or b in alone or 0xC8 <= b <= 0xCF))

    def _opcode3(self, b: int) -> None:
        self.opcode, self.immediate = b, int(self.map == 3)
        self._then(True)

    def _vex(self, b: int) -> None:
        self.map = self.map or b & 3
        self.left -= 1
        if self.left == 0:
            self.place = OPCODE2 if self.map < 2 else OPCODE3

    def _then(self, has_mod_rm: bool) -> None:
        if has_mod_rm:
            self.place = MOD_RM
        else:
            self._operands()

    def _mod_rm(self, b: int) -> None:
        self.mod_rm = b
        mod, rm = b >> 6, b & 7
        if self.map == 0 and self.opcode in (0xF6, 0xF7) and b >> 4 & 3 == 0:
            self.immediate = 1 if self.opcode == 0xF6 else 2 if self.narrow else 4
        if mod == 1:
            self.displacement = 1
        elif mod == 2 or (mod == 0 and rm == 5):
            self.displacement = 4
        if mod != 3 and rm == 4:
            self.place = SIB
        else:
            self._operands()

    def _sib(self, b: int) -> None:
        self.sib = b
        if self.mod_rm >> 6 == 0 and b & 7 == 5:
            self.displacement = 4
        self._operands()

    def _operands(self) -> None:
        if self.displacement:
            self.left, self.displacement, self.place = self.displacement, 0, DISPLACEMENT
        elif self.immediate:
            self.left, self.immediate = self.immediate, 0
            self.place = RELATIVE if self.relative else IMMEDIATE
        else:
            if self.operand:
                self.last_operand = self.operand
            instruction = self.opcode + 256 * self.map + 65536 * self.mod_rm
            self.before = [instruction, *self.before[:3]]
            self.operand = 0
            self._begin()
            return
        self.operand = 0
        self.place += FIRST.get(self.left, 0)
