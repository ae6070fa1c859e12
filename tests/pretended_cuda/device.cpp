// A CUDA device for PyTorch's CPU build. Tensors have the device "cuda:N" and CUDA's dispatch key; their memory is the
// host's, and the CPU's kernels compute. Whatever would make the host wait for a real device is reported to Python.
#include <ATen/EmptyTensor.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <limits>

#include "devices.h"

namespace {

// ---------------------------------------------------------------- what the host waits for, and what comes late

std::mutex late_lock;
struct LateCopy { int64_t number; Tensor to, from; };
std::vector<LateCopy> late_copies;  // copies to the host that it did not wait for
int64_t issued = 0;

void arrive(int64_t last) {
  std::lock_guard<std::mutex> lock(late_lock);
  std::vector<LateCopy> others;
  for (auto& copy : late_copies) {
    if (copy.number <= last) copy.to.copy_(copy.from);
    else others.push_back(copy);
  }
  late_copies.swap(others);
}

PyObject* on_wait = nullptr;  // called with what the host waits for

void wait_for_device(const std::string& what) {
  arrive(std::numeric_limits<int64_t>::max());
  if (!on_wait) return;
  pybind11::gil_scoped_acquire gil;
  PyObject* result = PyObject_CallFunction(on_wait, "s", what.c_str());
  if (!result) throw pybind11::error_already_set();
  Py_DECREF(result);
}

// ---------------------------------------------------------------- what the device is given to do

struct Count { int64_t calls = 0, bytes = 0; };
std::mutex count_lock;
std::map<std::string, Count> counts;  // by operation; copies and casts by kind, with the bytes that they write

void count(const std::string& name, int64_t bytes = 0) {
  std::lock_guard<std::mutex> lock(count_lock);
  auto& count = counts[name];
  count.calls++;
  count.bytes += bytes;
}

// Not so an operation that only looks at its tensors from another side, or makes one without contents.
bool gives_work(const c10::FunctionSchema& schema) {
  static const std::set<std::string> FREE = {"aten::empty", "aten::resize", "aten::set_", "aten::is_set_to",
                                             "aten::_fused_sdp_choice", "aten::is_pinned", "aten::record_stream"};
  for (const auto& result : schema.returns())
    if (result.alias_info() && !result.alias_info()->isWrite()) return false;
  return !FREE.count(schema.name());
}

// ---------------------------------------------------------------- the same memory, seen as a tensor of another device

void drop_storage(void* context) { delete static_cast<c10::Storage*>(context); }

c10::DataPtr same_memory(const c10::Storage& storage, Device device) {
  return {storage.mutable_data(), new c10::Storage(storage), &drop_storage, device};
}

Tensor seen_as(const Tensor& tensor, Device device) {
  const auto& storage = tensor.storage();
  auto* allocator = device.is_cuda() ? static_cast<at::Allocator*>(&device_allocator) : c10::GetCPUAllocator();
  c10::Storage other(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), storage.nbytes(),
                                                           same_memory(storage, device), allocator, true));
  auto key = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(other), c10::DispatchKeySet(key), tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

Tensor on_cpu(const Tensor& tensor) {
  return tensor.defined() && tensor.is_cuda() ? seen_as(tensor, Device(c10::kCPU)) : tensor;
}

// ---------------------------------------------------------------- every operation, by the CPU's kernel

const std::set<std::string> TAKES_CPU_TENSORS = {  // beside CUDA tensors
    "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index", "aten::copy_"};
const std::set<std::string> WAITS = {  // for what is in a tensor, to know the size of the result or the next step
    "aten::nonzero", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::masked_select",
    "aten::equal", "aten::repeat_interleave", "aten::bincount"};

// The tensors of one call, on their way to the CPU's kernel and back.
struct Arguments {
  std::string name;
  std::vector<std::pair<Tensor, Tensor>> seen;  // as the kernel sees it, the original
  DeviceIndex index = -1;
  bool has_cpu_tensor = false;

  Tensor to_cpu(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_cuda()) {
      has_cpu_tensor |= tensor.dim() > 0 && is_on_host(tensor);  // a number goes with any device
      return tensor;
    }
    TORCH_CHECK(index == -1 || index == tensor.device().index(), "Expected all tensors to be on the same device, but "
                "found at least two devices, cuda:", int(index), " and ", tensor.device(), "! (", name, ")");
    index = tensor.device().index();
    for (auto& [view, original] : seen) if (original.is_same(tensor)) return view;
    seen.emplace_back(on_cpu(tensor), tensor);
    return seen.back().first;
  }

  Tensor to_cuda(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (auto& [view, original] : seen) if (view.is_same(tensor)) return original;
    return tensor.is_cpu() ? seen_as(tensor, Device(CUDA, index < 0 ? this_device : index)) : tensor;
  }

  void check() {
    if (has_cpu_tensor && !seen.empty() && name.rfind("c10d::", 0) != 0) {
      TORCH_CHECK(TAKES_CPU_TENSORS.count(name), "Expected all tensors to be on the same device, but found at least two "
                  "devices, cuda:", int(index), " and cpu! (", name, ")");
      wait_for_device(name + " with a CPU tensor");
    } else if (WAITS.count(name)) {
      wait_for_device(name);
    }
  }

  // Gives an original the memory and shape that an operation with `out` or a resizing one gave its view.
  void follow_resizing() {
    for (auto& [view, original] : seen) {
      if (view.sizes() == original.sizes() && view.strides() == original.strides()) continue;
      if (view.storage().data() != original.storage().data()) {
        auto* storage = original.storage().unsafeGetStorageImpl();
        storage->set_data_ptr_noswap(same_memory(view.storage(), original.device()));
        storage->set_nbytes(view.storage().nbytes());
      }
      original.unsafeGetTensorImpl()->set_sizes_and_strides(view.sizes(), view.strides(), view.storage_offset());
    }
  }
};

c10::IValue map_tensors(const c10::IValue& value, const std::function<Tensor(const Tensor&)>& function) {
  if (value.isTensor()) return function(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> made;
    for (const Tensor& tensor : value.toTensorVector()) made.push_back(function(tensor));
    return made;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> made;
    for (const auto& tensor : value.toOptionalTensorList()) {
      std::optional<Tensor> each = tensor;
      made.push_back(each ? function(*each) : each);
    }
    return made;
  }
  if (value.isList() && value.toListRef().size() && value.toListRef()[0].isTensorList()) {
    c10::List<c10::List<Tensor>> made;
    for (const c10::IValue& list : value.toListRef()) made.push_back(map_tensors(list, function).toTensorList());
    return made;
  }
  return value;
}

// Lets the CPU's kernels draw from the generator of a device.
struct DeviceGenerator {
  std::lock_guard<std::mutex> lock;
  at::Generator cpu = at::detail::getDefaultCPUGenerator(), device;
  Tensor cpu_state = cpu.get_state();
  static std::mutex mutex;
  explicit DeviceGenerator(DeviceIndex index) : lock(mutex), device(at::detail::getCUDAHooks().getDefaultGenerator(index)) {
    cpu.set_state(device.get_state());
  }
  ~DeviceGenerator() {
    device.set_state(cpu.get_state());
    cpu.set_state(cpu_state);
  }
};
std::mutex DeviceGenerator::mutex;

void run_on_cpu(const c10::OperatorHandle& operation, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  Arguments arguments{schema.name()};
  for (size_t i = stack->size() - schema.arguments().size(); i < stack->size(); i++) {
    c10::IValue& value = (*stack)[i];
    if (value.isDevice() && value.toDevice().is_cuda()) {
      if (value.toDevice().has_index()) arguments.index = value.toDevice().index();
      value = Device(c10::kCPU);
    } else {
      value = map_tensors(value, [&](const Tensor& tensor) { return arguments.to_cpu(tensor); });
    }
  }
  arguments.check();
  if (gives_work(schema)) count(schema.name());
  {
    at::AutoDispatchBelowADInplaceOrView below;
    std::optional<DeviceGenerator> generator;
    if (operation.hasTag(at::Tag::nondeterministic_seeded)) generator.emplace(arguments.index);
    operation.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  arguments.follow_resizing();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++)
    (*stack)[i] = map_tensors((*stack)[i], [&](const Tensor& tensor) { return arguments.to_cuda(tensor); });
}

// ---------------------------------------------------------------- operations of which a device has its own

c10::DeviceGuard guard_for(std::optional<Device> device) {
  return c10::DeviceGuard(device && device->has_index() ? *device : Device(CUDA, this_device));
}

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  auto guard = guard_for(device);
  return at::detail::empty_generic(size, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(type), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                     std::optional<c10::Layout>, std::optional<Device> device, std::optional<bool>) {
  auto guard = guard_for(device);
  return at::detail::empty_strided_generic(size, stride, &device_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(type));
}

Tensor& copy_(Tensor& to, const Tensor& from, bool non_blocking) {
  at::AutoDispatchBelowADInplaceOrView below;
  if (to.const_data_ptr() == from.const_data_ptr() && to.dtype() == from.dtype() && to.strides() == from.strides())
    return to;  // what gloo hands back lies where NCCL would have put it
  bool from_device = is_on_host(to) && !is_on_host(from), to_device = is_on_host(from) && !is_on_host(to);
  count(from_device || to_device ? "copy between host and device" : to.dtype() == from.dtype() ? "copy" : "cast",
        to.nbytes());
  if (from_device && non_blocking && to.is_pinned()) {
    auto arriving = on_cpu(from).clone();
    to.fill_(to.is_floating_point() ? std::numeric_limits<double>::quiet_NaN() : -1);
    std::lock_guard<std::mutex> lock(late_lock);
    late_copies.push_back({++issued, to, arriving});
    return to;
  }
  if (from_device || (to_device && !non_blocking)) {
    std::ostringstream what;
    what << "copy from " << from.device() << " to " << to.device() << " " << to.sizes();
    wait_for_device(what.str());
  }
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

c10::Scalar local_scalar_dense(const Tensor& self) {
  wait_for_device("item");
  at::AutoDispatchBelowADInplaceOrView below;
  return at::_local_scalar_dense(on_cpu(self));
}

void resize_storage(c10::StorageImpl* storage, size_t size) {
  c10::DeviceGuard guard(storage->device());
  auto data = device_allocator.allocate(size);
  if (size && storage->nbytes()) std::memcpy(data.get(), storage->data(), std::min(size, storage->nbytes()));
  storage->set_data_ptr_noswap(std::move(data));
  storage->set_nbytes(size);
}

const Tensor& resize_(const Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat>) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  size_t needed = (tensor->numel() + tensor->storage_offset()) * tensor->itemsize();
  auto* storage = tensor->unsafe_storage().unsafeGetStorageImpl();
  if (storage->nbytes() < needed) resize_storage(storage, needed);
  return self;
}

// Views share the storage itself, which a view of the CPU's tensor would not.
Tensor as_strided(const Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}
Tensor view(const Tensor& self, c10::IntArrayRef size) { return at::native::view(self, size); }
Tensor reshape_alias(const Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}
Tensor unfold(const Tensor& self, int64_t dimension, int64_t size, int64_t step) {
  return at::native::unfold(self, dimension, size, step);
}

Tensor& set_storage(Tensor& self, c10::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  auto strides = stride.size() == size.size() ? stride.vec() : c10::TensorType::contiguousStridesOf(size);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, strides, offset);
  return self;
}
Tensor& set_whole_storage(Tensor& self, c10::Storage source) {
  int64_t elements = source.nbytes() / self.dtype().itemsize();
  return set_storage(self, std::move(source), 0, {elements}, {1});
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

// ---------------------------------------------------------------- attention as one operation, forward and backward

int64_t choose_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                         std::optional<double>, bool) {
  return int64_t(at::globalContext().userEnabledMemEfficientSDP() ? sdp::SDPBackend::efficient_attention
                                                                  : sdp::SDPBackend::math);
}

using Optional = std::optional<Tensor>;
Tensor attend(const Tensor& query, const Tensor& key, const Tensor& value, const Optional& bias, double dropout,
              bool is_causal, std::optional<double> scale) {
  return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, bias, dropout, is_causal, {}, scale));
}

// As CUDA's kernel lays it out: (batch, heads, length, width), in memory as (batch, length, heads, width).
Tensor by_token(const Tensor& tensor) { return tensor.transpose(1, 2).contiguous().transpose(1, 2); }

// Keeps no probabilities, as CUDA's kernel does not: the backward pass computes them again, from the same random numbers.
std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const Optional& bias, bool, double dropout,
    bool is_causal, std::optional<double> scale) {
  count("attention");
  at::AutoDispatchBelowADInplaceOrView below;
  auto index = query.device().index();
  DeviceGenerator generator(index);
  auto random_state = generator.cpu.get_state();
  auto output = attend(on_cpu(query), on_cpu(key), on_cpu(value), bias ? Optional(on_cpu(*bias)) : bias, dropout,
                       is_causal, scale);
  return {seen_as(by_token(output), Device(CUDA, index)), at::empty({0}, query.options()), random_state, at::empty({0})};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_attention_backward(
    const Tensor& gradient, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& bias,
    const Tensor&, const Tensor&, const Tensor& random_state, const Tensor&, double dropout, std::array<bool, 4> wanted,
    bool is_causal, std::optional<double> scale) {
  count("attention, backward");
  auto index = query.device().index();
  std::vector<Tensor> inputs;
  for (const auto& input : {query, key, value, bias})
    inputs.push_back(input.defined() ? on_cpu(input).detach().requires_grad_(wanted[inputs.size()]) : input);
  std::vector<Tensor> asked_for;
  for (const auto& input : inputs) if (input.defined() && input.requires_grad()) asked_for.push_back(input);
  DeviceGenerator generator(index);
  generator.cpu.set_state(random_state);
  auto keys = c10::impl::tls_local_dispatch_key_set();  // a kernel runs below autograd
  c10::impl::ForceDispatchKeyGuard with_autograd(keys.included_,
                                                 keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  at::AutoGradMode enabled(true);
  auto output = attend(inputs[0], inputs[1], inputs[2], bias.defined() ? Optional(inputs[3]) : std::nullopt, dropout,
                       is_causal, scale);
  auto gradients = torch::autograd::grad({output}, asked_for, {on_cpu(gradient)});
  std::array<Tensor, 4> found;
  for (size_t i = 0, next = 0; i < 4; i++)
    if (inputs[i].defined() && inputs[i].requires_grad())
      found[i] = seen_as(by_token(gradients[next++]), Device(CUDA, index));
  return {found[0], found[1], found[2], found[3]};
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("copy_", &copy_);
  library.impl("_local_scalar_dense", &local_scalar_dense);
  library.impl("resize_", &resize_);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("unfold", &unfold);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("_scaled_dot_product_efficient_attention", &efficient_attention);
  library.impl("_scaled_dot_product_efficient_attention_backward", &efficient_attention_backward);
}

struct NoWarnings final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// c10d's own kernels for CUDA look for a back end that takes CUDA tensors; gloo gets to see them as the CPU's.
void send_collectives_to_gloo() {
  static torch::Library library(torch::Library::IMPL, "c10d", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  NoWarnings handler;  // the dispatcher warns of a kernel that takes another one's place
  c10::WarningUtils::WarningHandlerGuard guard(&handler);
  for (auto name : {"allreduce_", "allreduce_coalesced_", "broadcast_", "reduce_", "allgather_", "_allgather_base_",
                    "allgather_coalesced_", "allgather_into_tensor_coalesced_", "reduce_scatter_",
                    "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_", "gather_", "scatter_", "alltoall_",
                    "alltoall_base_", "barrier", "send", "recv_", "recv_any_source_"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

// An operation for which CUDA has a kernel arrives whole, and not in the parts that any device could compute: fused and
// foreach ones above all. Indexing does not: a mask as index makes the host wait, by way of its part `nonzero`.
void keep_operations_whole() {
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0 || name.name.find("index") != std::string::npos) continue;
    auto operation = dispatcher.findSchema(name);
    if (!operation || operation->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) continue;
    if (operation->hasKernelForDispatchKey(c10::DispatchKey::CPU) || name.name.rfind("aten::_foreach_", 0) == 0)
      library.impl(c10::str(name).substr(6).c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  send_collectives_to_gloo();
  keep_operations_whole();
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention);
  module.def("operations", [] {  // {name: (calls, bytes)} since the process began
    std::lock_guard<std::mutex> lock(count_lock);
    std::map<std::string, std::pair<int64_t, int64_t>> copy;
    for (const auto& [name, count] : counts) copy[name] = {count.calls, count.bytes};
    return copy;
  });
  module.def("on_wait", [](pybind11::object function) { on_wait = function.release().ptr(); });
  module.def("wait_for_device", &wait_for_device);
  module.def("issued", [] { std::lock_guard<std::mutex> lock(late_lock); return issued; });
  module.def("arrive", &arrive);
  module.def("device_count", [] { return int(device_count()); });
  module.def("current_device", [] { return int(this_device); });
  module.def("set_device", [](int index) { set_device(index); });
  module.def("allocated", [](int index) { return int64_t(allocated_bytes[index]); });
  module.def("peak", [](int index) { return int64_t(peak_bytes[index]); });
  module.def("reset_peak", [](int index) { peak_bytes[index] = int64_t(allocated_bytes[index]); });
  module.def("resize_storage", [](c10::Storage storage, size_t size) { resize_storage(storage.unsafeGetStorageImpl(), size); });
  module.def("generator", [](int index) { return at::detail::getCUDAHooks().getDefaultGenerator(index); });
}
