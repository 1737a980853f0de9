// aligned.h: arrays that start on a cache line, zero at first, of a size that never changes.
#pragma once
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace lmzip {

inline constexpr size_t kCacheLine = 64;

template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t size)
      : size_(size),
        data_(static_cast<T*>(::operator new(bytes(size), std::align_val_t{kCacheLine}))) {
    std::memset(static_cast<void*>(data_.get()), 0, bytes(size));
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{kCacheLine}); }
  };
  static size_t bytes(size_t size) { return size * sizeof(T); }

  size_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

}  // namespace lmzip
