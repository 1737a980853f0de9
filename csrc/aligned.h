// aligned.h: arrays that start on a cache line, zero at first, of a size that never changes.  Large
// ones ask for huge pages: tables that are read all over are a tenth faster with them.
#pragma once
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lmzip {

inline constexpr size_t kCacheLine = 64;
inline constexpr size_t kHugePage = size_t{1} << 21;

template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t size) : size_(size), data_(allocate(size * sizeof(T))) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    std::align_val_t alignment{kCacheLine};
    void operator()(T* p) const { ::operator delete(p, alignment); }
  };
  using Pointer = std::unique_ptr<T, Free>;

  static Pointer allocate(size_t bytes) {
    const std::align_val_t alignment{bytes >= kHugePage ? kHugePage : kCacheLine};
    void* const memory = ::operator new(bytes, alignment);
#if defined(__linux__)
    if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, bytes);
    return Pointer(static_cast<T*>(memory), Free{alignment});
  }

  size_t size_ = 0;
  Pointer data_;
};

}  // namespace lmzip
