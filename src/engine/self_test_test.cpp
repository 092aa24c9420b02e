// The self-test passes on every instruction set of this machine, and would not pass anything.
#include "engine/self_test.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/machine.h"
#include "kernels/qgemm/api.h"
#include "kernels/qgemm/isa.h"

namespace longspur::engine {
namespace {

TEST(SelfTest, PassesOnEveryInstructionSet) {
  const std::string best(kernels::qgemm::active_isa());
  for (const std::string_view isa : kernels::qgemm::available_isas()) {
    kernels::qgemm::limit_isa(isa);
    for (const SelfTestCase& test : self_test()) {
      EXPECT_TRUE(test.passed) << isa << " " << test.name << " " << test.error;
      EXPECT_LE(test.error, 0.5) << isa << " " << test.name << ": nearly refused";
    }
  }
  kernels::qgemm::limit_isa(best);
}

TEST(SelfTest, ErrorsAreMeasured) {
  int inexact = 0;
  for (const SelfTestCase& test : self_test()) inexact += test.error > 0 ? 1 : 0;
  EXPECT_GE(inexact, 3);  // fp32 sums differ from double ones: the comparison is not with itself
}

TEST(Machine, DescribesItself) {
  const Machine machine = describe_machine();
  EXPECT_GE(machine.threads, 1);
  EXPECT_GE(machine.processors, machine.threads);
  EXPECT_GT(machine.memory_total, machine.memory_available);
  ASSERT_EQ(machine.models.size(), 1u);
  EXPECT_EQ(machine.models[0].name, "smollm2");
  EXPECT_FALSE(machine.models[0].looked.empty());
  EXPECT_EQ(machine.cuda.reason.empty(), !machine.cuda.devices.empty());
}

}  // namespace
}  // namespace longspur::engine
