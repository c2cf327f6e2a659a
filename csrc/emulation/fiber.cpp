#include "fiber.h"

#if defined(__x86_64__)
// Push the registers that a called function has to preserve, change stacks, and pop them there. `swapcontext` would
// take two system calls, and the barriers and shuffles of a kernel are millions of switches.
extern "C" void emulation_switch(void** save, void* load);
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
#endif

namespace emulation {
namespace {
thread_local Fiber* current = nullptr;
}

void Fiber::before_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* bottom,
                          [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#endif
}

void Fiber::after_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** bottom,
                         [[maybe_unused]] std::size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
#endif
}

void Fiber::unpoison() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_ + kGuardBytes, kStackBytes - kGuardBytes);
#endif
}

void Fiber::begin() {
  Fiber& self = *current;
  self.after_switch(nullptr, &self.outer_bottom_, &self.outer_bytes_);
  self.function_();
  self.ended_ = true;
  self.leave();
}

void Fiber::start(void (*function)()) {
  if (!stack_) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(memory);
    mprotect(stack_, kGuardBytes, PROT_NONE);
  }
  unpoison();
  function_ = function;
  ended_ = false;
  inner_fake_stack_ = nullptr;
#if defined(__x86_64__)
  // As if emulation_switch were about to return to `begin`: six registers below its address, and the stack aligned as
  // at a call.
  auto* top = reinterpret_cast<void**>(stack_ + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(&Fiber::begin);
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  inner_ = top - 6;
#else
  getcontext(&inner_);
  inner_.uc_stack.ss_sp = stack_;
  inner_.uc_stack.ss_size = kStackBytes;
  inner_.uc_link = nullptr;
  makecontext(&inner_, &Fiber::begin, 0);
#endif
}

void Fiber::enter() {
  current = this;
  before_switch(&outer_fake_stack_, stack_, kStackBytes);
#if defined(__x86_64__)
  emulation_switch(&outer_, inner_);
#else
  swapcontext(&outer_, &inner_);
#endif
  after_switch(outer_fake_stack_, nullptr, nullptr);
}

void Fiber::leave() {
  before_switch(ended_ ? nullptr : &inner_fake_stack_, outer_bottom_, outer_bytes_);
#if defined(__x86_64__)
  emulation_switch(&inner_, outer_);
#else
  swapcontext(&inner_, &outer_);
#endif
  after_switch(inner_fake_stack_, &outer_bottom_, &outer_bytes_);
}

}  // namespace emulation
