// The longspur program.
#include "app/cli/program.h"

int main(int argc, char** argv) {
  return longspur::app::cli::run_program(std::vector<std::string>(argv + 1, argv + argc));
}
