// The card's own ceiling for a bench: how fast a kernel that does nothing else reads memory.
#pragma once

#include <string>

namespace longspur::bench {

struct PlainRead {
  std::string device;    // the card's name
  double tb_per_s = 0;   // median over 2 GiB, sustained
  double clock_mhz = 0;  // multiprocessor clock that the driver names as the highest
};

// Throws Error when there is no device.
PlainRead plain_read();

}  // namespace longspur::bench
