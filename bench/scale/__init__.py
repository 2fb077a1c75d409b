"""Jobs beyond one machine: kills, memory, throughput, costs of an image, and a queue of many workers from them."""
