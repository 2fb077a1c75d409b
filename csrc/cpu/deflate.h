// Deflate (RFC 1951) of bytes that do not repeat: a Huffman code for every block, no references to earlier
// bytes.
//
// What filters leave of a photograph repeats nowhere, so a search for repetitions costs time and gains
// nothing.

#pragma once

#include <cstddef>
#include <cstdint>

namespace lpn {

// Bytes that the code of `count` bytes may take, at most.
std::size_t deflate_bound(std::size_t count);

// Writes the code of data[0, count) to out, of deflate_bound(count) bytes; returns how many it took.
std::size_t deflate_bytes(const std::uint8_t* data, std::size_t count, std::uint8_t* out);

}  // namespace lpn
