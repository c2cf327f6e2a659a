// A function with a stack of its own that can be suspended and resumed.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

class Fiber {
 public:
  Fiber() = default;
  Fiber(Fiber&& other) noexcept : stack_(other.stack_) { other.stack_ = nullptr; }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (!stack_) return;
    unpoison();
    munmap(stack_, kStackBytes);
  }

  // Make `function` begin at the next `enter`; an earlier one that did not finish is abandoned.
  void start(void (*function)());

  // Resume until the fiber leaves again or ends; called from outside.
  void enter();

  // Suspend and return from `enter`; called from inside.
  void leave();

 private:
  // Large enough for the frames of sanitizers; pages that are never touched cost nothing.
  static constexpr std::size_t kStackBytes = 512 * 1024;
  static constexpr std::size_t kGuardBytes = 4096;

  static void begin();
  // Forget what AddressSanitizer has marked on the stack: frames that were abandoned, which new ones would meet, and
  // whoever is given the memory next.
  void unpoison();
  void before_switch(void** fake_stack, const void* bottom, std::size_t bytes);
  void after_switch(void* fake_stack, const void** bottom, std::size_t* bytes);

  char* stack_ = nullptr;
  void (*function_)() = nullptr;
  bool ended_ = false;
  void* outer_fake_stack_ = nullptr;
  void* inner_fake_stack_ = nullptr;
  const void* outer_bottom_ = nullptr;
  std::size_t outer_bytes_ = 0;
#if defined(__x86_64__)
  void* outer_ = nullptr;
  void* inner_ = nullptr;
#else
  ucontext_t outer_, inner_;
#endif
};

}  // namespace emulation
