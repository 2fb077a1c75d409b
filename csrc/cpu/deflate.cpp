#include "deflate.h"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

namespace lpn {
namespace {

constexpr std::size_t block_bytes =
    1 << 16;  // a code of its own for each: 130 bytes, and statistics that are local
constexpr int literals = 256, end_of_block = 256, symbols = 257;
constexpr int longest = 15;                // bits of a code word
constexpr std::size_t header_bytes = 160;  // of a block: what describes its code, and the last byte
constexpr int burst = 3;                   // words between two stores: 7 + 3 * 15 <= 64 bits
constexpr std::size_t store_bytes = 8;

// Bits, the lowest first, in a 64-bit word that is stored whole and advanced by the bytes that are full.
class BitWriter {
 public:
  explicit BitWriter(std::uint8_t* out) : begin_(out), out_(out) {}

  void put(std::uint64_t value, int bits) {
    word_ |= value << filled_;
    filled_ += bits;
  }

  void store() {
    for (std::size_t i = 0; i < store_bytes; ++i) out_[i] = static_cast<std::uint8_t>(word_ >> (8 * i));
    const int full = filled_ & ~7;
    out_ += full >> 3;
    word_ = full < 64 ? word_ >> full : 0;
    filled_ -= full;
  }

  std::size_t finish() {
    filled_ = (filled_ + 7) & ~7;
    store();
    return static_cast<std::size_t>(out_ - begin_);
  }

 private:
  std::uint8_t* begin_;
  std::uint8_t* out_;
  std::uint64_t word_ = 0;
  int filled_ = 0;
};

struct Code {
  std::array<std::uint8_t, symbols> length{};
  std::array<std::uint16_t, symbols> word{};  // its bits in the order in which they are written
};

// Lengths of Huffman's words for the counts, 0 for symbols that do not occur.
std::array<std::uint8_t, symbols> huffman_lengths(const std::array<std::uint32_t, symbols>& counts) {
  using Node = std::pair<std::uint64_t, int>;  // (count, index)
  std::priority_queue<Node, std::vector<Node>, std::greater<Node>> open;
  std::array<int, 2 * symbols> parent{};
  for (int s = 0; s < symbols; ++s)
    if (counts[s]) open.emplace(counts[s], s);
  int next = symbols;
  while (open.size() > 1) {
    const Node a = open.top();
    open.pop();
    const Node b = open.top();
    open.pop();
    parent[a.second] = parent[b.second] = next;
    open.emplace(a.first + b.first, next++);
  }
  std::array<int, 2 * symbols> depth{};  // of the root, next - 1, it is 0
  for (int node = next - 2; node >= symbols; --node) depth[node] = depth[parent[node]] + 1;
  std::array<std::uint8_t, symbols> lengths{};
  for (int s = 0; s < symbols; ++s)
    if (counts[s]) lengths[s] = static_cast<std::uint8_t>(depth[parent[s]] + 1);
  return lengths;
}

int reversed(int word, int bits) {
  int result = 0;
  for (int i = 0; i < bits; ++i) result |= (word >> i & 1) << (bits - 1 - i);
  return result;
}

// The canonical code of a block: words of one length count upwards in the order of their symbols.
Code code_of(const std::uint8_t* data, std::size_t count) {
  // four tables, so that equal neighbours do not wait for each other's counts
  std::array<std::array<std::uint32_t, literals>, 4> tables{};
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (std::size_t t = 0; t < 4; ++t) ++tables[t][data[i + t]];
  for (; i < count; ++i) ++tables[0][data[i]];
  std::array<std::uint32_t, symbols> counts{};
  for (int s = 0; s < literals; ++s) counts[s] = tables[0][s] + tables[1][s] + tables[2][s] + tables[3][s];
  counts[end_of_block] = 1;

  Code code;
  code.length = huffman_lengths(counts);
  while (*std::max_element(code.length.begin(), code.length.end()) > longest) {
    for (auto& c : counts) c = (c + 1) / 2;  // flatter until it fits
    code.length = huffman_lengths(counts);
  }
  int word = 0;
  for (int bits = 1; bits <= longest; ++bits) {
    for (int s = 0; s < symbols; ++s)
      if (code.length[s] == bits) code.word[s] = static_cast<std::uint16_t>(reversed(word++, bits));
    word <<= 1;
  }
  return code;
}

// Section 3.2.7 of the RFC. Lengths are written as 4-bit numbers, by a code of lengths all whose 16 words
// have 4 bits.
void put_header(BitWriter& out, const Code& code, bool is_last) {
  constexpr int distances = 2, length_codes = 19,
                repeats = 3;  // those for runs of lengths come first, not used
  out.put(is_last, 1);
  out.put(2, 2);  // dynamic Huffman codes
  out.put(symbols - 257, 5);
  out.put(distances - 1, 5);
  out.put(length_codes - 4, 4);
  for (int i = 0; i < length_codes; ++i) {
    out.put(i < repeats ? 0 : 4, 3);
    out.store();
  }
  for (int s = 0; s < symbols; ++s) {
    out.put(static_cast<std::uint64_t>(reversed(code.length[s], 4)), 4);
    out.store();
  }
  for (int d = 0; d < distances; ++d)
    out.put(static_cast<std::uint64_t>(reversed(1, 4)), 4);  // complete, not used
  out.store();
}

}  // namespace

std::size_t deflate_bound(std::size_t count) {
  return 2 * count + (count / block_bytes + 1) * header_bytes + store_bytes;
}

std::size_t deflate_bytes(const std::uint8_t* data, std::size_t count, std::uint8_t* out) {
  BitWriter bits(out);
  std::size_t first = 0;
  do {
    const std::size_t length = std::min(block_bytes, count - first);
    const std::uint8_t* block = data + first;
    first += length;
    const Code code = code_of(block, length);
    put_header(bits, code, first == count);
    std::size_t i = 0;
    for (; i + burst <= length; i += burst) {
      for (int k = 0; k < burst; ++k) bits.put(code.word[block[i + k]], code.length[block[i + k]]);
      bits.store();
    }
    for (; i < length; ++i) bits.put(code.word[block[i]], code.length[block[i]]);
    bits.store();
    bits.put(code.word[end_of_block], code.length[end_of_block]);
    bits.store();
  } while (first < count);
  return bits.finish();
}

}  // namespace lpn
