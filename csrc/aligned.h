// aligned.h: arrays that start on a cache line, zero at first, of a size that never changes.  Large
// ones ask for huge pages: tables that are read all over are a tenth faster with them.  Sparse
// ones, of which little will be touched, cost what is touched only, on Linux.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lmzip {

inline constexpr size_t kCacheLine = 64;
inline constexpr size_t kHugePage = size_t{1} << 21;

enum class Use { kAll, kSparse };

template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t size, Use use = Use::kAll)
      : size_(size), data_(allocate(size * sizeof(T), use)) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    std::align_val_t alignment{kCacheLine};
    size_t mapped = 0;  // bytes of a mapping; 0: it is of operator new
    void operator()(T* p) const {
#if defined(__linux__)
      if (mapped != 0) {
        munmap(p, mapped);
        return;
      }
#endif
      ::operator delete(p, alignment);
    }
  };
  using Pointer = std::unique_ptr<T, Free>;

  static Pointer allocate(size_t bytes, Use use) {
#if defined(__linux__)
    if (use == Use::kSparse && bytes >= kHugePage) {
      void* const pages =
          mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (pages == MAP_FAILED) throw std::bad_alloc();
      madvise(pages, bytes, MADV_NOHUGEPAGE);
      return Pointer(static_cast<T*>(pages), Free{{}, bytes});
    }
#endif
    const std::align_val_t alignment{bytes >= kHugePage ? kHugePage : kCacheLine};
    void* const memory = ::operator new(bytes, alignment);
#if defined(__linux__)
    if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, bytes);
    return Pointer(static_cast<T*>(memory), Free{alignment, 0});
  }

  size_t size_ = 0;
  Pointer data_;
};

// Arrays of bytes that are made one after the other and go together: many of them in a few large
// pieces, for each alone would be too small for huge pages.
class Arena {
 public:
  // size zeros, on a cache line
  int8_t* take(size_t size) {
    size = (size + kCacheLine - 1) / kCacheLine * kCacheLine;
    if (pieces_.empty() || pieces_.back().size() - used_ < size) {
      pieces_.emplace_back(std::max(size, std::clamp(memory_, kHugePage, 8 * kHugePage)));
      memory_ += pieces_.back().size();
      used_ = 0;
    }
    used_ += size;
    return pieces_.back().data() + (used_ - size);
  }

  size_t memory() const { return memory_; }

 private:
  std::vector<AlignedArray<int8_t>> pieces_;
  size_t used_ = 0;  // of the last one
  size_t memory_ = 0;
};

}  // namespace lmzip
