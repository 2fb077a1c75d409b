// Checks of what Python passes: addresses of contiguous data, and sizes.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace lpn {

using Address = std::uintptr_t;

template <class Value>
Value* optional(Address address, const char* name) {
  if (address % alignof(Value))
    throw std::invalid_argument(std::string(name) + " must be aligned to " + std::to_string(alignof(Value)) +
                                " bytes, got address " + std::to_string(address));
  return reinterpret_cast<Value*>(address);
}

// An empty tensor may have no memory at all, so only a non-empty one must have an address.
template <class Value>
Value* required(Address address, const char* name, int64_t count) {
  if (count > 0 && !address) throw std::invalid_argument(std::string(name) + " must be an address, got 0");
  return optional<Value>(address, name);
}

inline void require_at_least(int64_t low, int64_t value, const char* name) {
  if (value < low)
    throw std::invalid_argument(std::string(name) + " must be at least " + std::to_string(low) + ", got " +
                                std::to_string(value));
}

}  // namespace lpn
