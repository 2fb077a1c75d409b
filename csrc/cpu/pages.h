// Pages of large tensors.

#pragma once

#include <cstddef>

namespace lpn {

// Asks for huge pages within [address, address + bytes), whose contents stay what they are. A hint: systems
// without them ignore it.
void advise_huge_pages(void* address, std::size_t bytes);

}  // namespace lpn
