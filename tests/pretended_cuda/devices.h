// Devices that are not there: which one is current, their memory, and what else PyTorch asks CUDA.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
constexpr auto CUDA = c10::DeviceType::CUDA;

// ---------------------------------------------------------------- devices, streams

thread_local DeviceIndex this_device = 0;

DeviceIndex device_count() {
  static const DeviceIndex count = std::atoi(std::getenv("PRETENDED_GPUS"));
  return count;
}

void set_device(DeviceIndex index) {
  TORCH_CHECK(index < device_count(), "CUDA error: invalid device ordinal ", int(index));
  if (index >= 0) this_device = index;
}

DeviceIndex exchange_device(DeviceIndex index) {
  auto before = this_device;
  set_device(index);
  return before;
}

// Kernels are done when they return, so every stream is the default one and no event is ever awaited.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CUDA; }
  Device getDevice() const override { return Device(CUDA, this_device); }
  Device exchangeDevice(Device device) const override { return Device(CUDA, exchange_device(device.index())); }
  void setDevice(Device device) const override { set_device(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) this_device = device.index();
  }
  c10::Stream getStream(Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device.has_index() ? device : getDevice());
  }
  c10::Stream getDefaultStream(Device device) const override { return getStream(device); }
  c10::Stream getNewStream(Device device, int) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  DeviceIndex deviceCount() const noexcept override { return device_count(); }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
c10::impl::DeviceGuardImplRegistrar register_guard(CUDA, new Guard());

// DDP's reducer asks the registry for a timer of its device.
struct Timer final : c10d::Timer {
  explicit Timer(Device) {}
  std::optional<int64_t> measureDifference(Event start, Event end) override { return getTimeRef(end) - getTimeRef(start); }
};
int register_timer = [] {
  c10d::TimerRegistry()->Register(CUDA, [](Device device) -> std::unique_ptr<c10d::Timer> {
    return std::make_unique<Timer>(device);
  });
  return 0;
}();

// ---------------------------------------------------------------- memory

std::atomic<int64_t> allocated_bytes[64], peak_bytes[64];
std::mutex memory_lock;
std::map<const char*, size_t> device_blocks;
std::set<const void*> pinned_blocks;  // page-locked memory of the host: only with this can a copy be asynchronous

void* aligned(size_t size) {
  void* data = nullptr;
  if (size && posix_memalign(&data, 64, size)) throw std::bad_alloc();
  return data;
}

struct Block {
  char* data;
  size_t size;
  DeviceIndex device;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated_bytes[block->device] -= block->size;
  {
    std::lock_guard<std::mutex> lock(memory_lock);
    device_blocks.erase(block->data);
  }
  std::free(block->data);
  delete block;
}

struct DeviceAllocator final : at::Allocator {
  c10::DataPtr allocate(size_t size) override {
    auto* block = new Block{static_cast<char*>(aligned(size)), size, this_device};
    int64_t now = allocated_bytes[this_device] += size, before = peak_bytes[this_device];
    while (now > before && !peak_bytes[this_device].compare_exchange_weak(before, now)) {}
    std::lock_guard<std::mutex> lock(memory_lock);
    if (size) device_blocks[block->data] = size;
    return {block->data, block, &free_block, Device(CUDA, this_device)};
  }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
} device_allocator;
int register_allocator = [] { c10::SetAllocator(CUDA, &device_allocator, /*priority=*/1); return 0; }();

void free_pinned(void* data) {
  {
    std::lock_guard<std::mutex> lock(memory_lock);
    pinned_blocks.erase(data);
  }
  std::free(data);
}

struct PinnedAllocator final : at::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = aligned(size);
    std::lock_guard<std::mutex> lock(memory_lock);
    if (data) pinned_blocks.insert(data);
    return {data, data, &free_pinned, Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
} pinned_allocator;

// gloo hands results back as CPU tensors, but in the device's memory: these are the device's.
bool is_on_host(const Tensor& tensor) {
  if (!tensor.is_cpu()) return false;
  auto* data = static_cast<const char*>(tensor.const_data_ptr());
  std::lock_guard<std::mutex> lock(memory_lock);
  auto after = device_blocks.upper_bound(data);
  if (after == device_blocks.begin()) return true;
  auto [begin, size] = *std::prev(after);
  return data >= begin + size;
}

// ---------------------------------------------------------------- what the rest of PyTorch asks CUDA

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return device_count(); }
  int getNumGPUs() const override { return device_count(); }
  void setCurrentDevice(DeviceIndex index) const override { set_device(index); }
  DeviceIndex getCurrentDevice() const override { return this_device; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return exchange_device(index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchange_device(index); }
  Device getDeviceFromPtr(void*) const override { return Device(CUDA, this_device); }
  void deviceSynchronize(DeviceIndex) const override {}
  at::Allocator* getCUDADeviceAllocator() const override { return &device_allocator; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> lock(memory_lock);
    return pinned_blocks.count(data);
  }
  const at::Generator& getDefaultGenerator(DeviceIndex index = -1) const override {
    static std::vector<at::Generator> generators = [] {
      std::vector<at::Generator> made;
      for (int i = 0; i < device_count(); i++) made.push_back(at::detail::createCPUGenerator());
      return made;
    }();
    return generators[index < 0 ? this_device : index];
  }
  at::Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

// By now `import torch` has made the CPU build's hooks, for good. They have no members, so ours can take their place by
// the pointer to the table of virtual functions.
int replace_hooks = [] {
  static Hooks ours{at::CUDAHooksArgs()};
  auto* theirs = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  std::memcpy(static_cast<void*>(theirs), static_cast<void*>(static_cast<at::CUDAHooksInterface*>(&ours)), sizeof(void*));
  at::globalContext().lazyInitDevice(CUDA);
  return 0;
}();

}  // namespace
