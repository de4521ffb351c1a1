// Views of a batch of images: one kernel resamples and takes the steps up to the first that needs the whole
// view, one is launched for each that may follow. What blocks do stands in block.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "cuda/augment/augment.h"
#include "cuda/augment/block.h"
#include "cuda/errors.h"

namespace fastssl::cuda {
namespace {

using namespace fastssl::portable;

// Blocks per multiprocessor that registers have to suffice for. A blur's shared memory allows as many.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int kResampleBlocks = 3, kContinueBlocks = 3;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kResampleBlocks = 3, kContinueBlocks = 2;
#else
constexpr int kResampleBlocks = 2, kContinueBlocks = 2;
#endif

// Pixels in half precision: 3e-4 from exact in [0, 1], a twelfth of a grey level.
struct HalfMemory {
  template <int N>
  struct alignas(N == 3 ? 8 : 2) Packed {
    __half v[N == 3 ? 4 : N];

    __device__ __forceinline__ Color<N> color() const {
      if constexpr (N == 3) {
        const Packed p = *this;  // one load of eight bytes
        return {{__half2float(p.v[0]), __half2float(p.v[1]), __half2float(p.v[2])}};
      } else {
        return {{__half2float(v[0])}};
      }
    }
    __device__ __forceinline__ static Packed of(const Color<N>& color) {
      Packed p;
      if constexpr (N == 3) {
        p.v[0] = __float2half_rn(color.v[0]);
        p.v[1] = __float2half_rn(color.v[1]);
        p.v[2] = __float2half_rn(color.v[2]);
        p.v[3] = __float2half_rn(0.0f);
      } else {
        p.v[0] = __float2half_rn(color.v[0]);
      }
      return p;
    }
  };

  __device__ __forceinline__ static void write(void* out, DType dtype, std::int64_t i, float x) {
    if (dtype == DType::kFloat32) static_cast<float*>(out)[i] = x;
    if (dtype == DType::kBFloat16) static_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16_rn(x);
    if (dtype == DType::kFloat16) static_cast<__half*>(out)[i] = __float2half_rn(x);
  }
};

template <class T>
__device__ T warp_sum(T x) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// Of all threads of a block; thread 0 gets it.
__device__ float block_sum(float x) {
  __shared__ float parts[kWarps];
  x = warp_sum(x);
  if (threadIdx.x % kLanes == 0) parts[threadIdx.x / kLanes] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp];
  return sum;
}

template <int N, bool bicubic>
__global__ void __launch_bounds__(kThreads, kResampleBlocks) resample_views(const __grid_constant__ Job job) {
  using View = Tile<N, HalfMemory>;
  __shared__ typename View::Axes axes;
  __shared__ Plan plan;
  if (threadIdx.x == 0) plan = View::plan_of(job, blockIdx.y);
  __syncthreads();
  const View tile(job, plan, blockIdx.y, blockIdx.z, blockIdx.x);
  tile.template stage_taps<bicubic>(threadIdx.x, &axes);
  __syncthreads();
  const float gray = tile.template resample<bicubic>(threadIdx.x, axes);
  if (tile.is_last()) return;
  const float sum = block_sum(gray);
  if (threadIdx.x == 0) job.gray_after[tile.gray_index(blockIdx.x)] = sum;
}

template <int N>
constexpr int pass_memory() {
  using View = Tile<N, HalfMemory>;
  return static_cast<int>(std::max(sizeof(typename View::Near), sizeof(typename View::Wide)));
}

template <int N>
__global__ void __launch_bounds__(kThreads, kContinueBlocks) continue_views(const __grid_constant__ Job job) {
  using View = Tile<N, HalfMemory>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Plan plan;
  __shared__ double gray_before;
  if (threadIdx.x == 0) plan = View::plan_of(job, blockIdx.y);
  __syncthreads();
  View tile(job, plan, blockIdx.y, blockIdx.z, blockIdx.x);
  if (tile.idle()) return;
  const int thread = threadIdx.x;
  if (tile.needs_gray()) {
    if (thread < kLanes) {
      const float* parts = job.gray_before + tile.gray_index(0);
      double sum = 0.0;
      for (int i = thread; i < gridDim.x; i += kLanes) sum += parts[i];
      sum = warp_sum(sum);
      if (thread == 0) gray_before = sum;
    }
    __syncthreads();
    tile.set_gray(gray_before);
  }
  const Mode mode = tile.mode();
  if (mode == Mode::kBlur || mode == Mode::kSobel) {
    auto* near = reinterpret_cast<typename View::Near*>(memory);
    if (mode == Mode::kBlur) tile.stage_weights(thread, near->weights);
    tile.stage_pixels(thread, near->pixels);
    __syncthreads();
    if (mode == Mode::kBlur) {
      tile.blur_rows(thread, near);
      __syncthreads();
    }
  } else if (mode == Mode::kRotate) {
    tile.stage_rotation(thread, reinterpret_cast<Rotation<float>*>(memory));
    __syncthreads();
  } else if (mode == Mode::kWideBlur) {
    auto* wide = reinterpret_cast<typename View::Wide*>(memory);
    const int r = tile.radius();
    for (int row = -r; row < kTileY + r; row += kWarps) {
      for (int column = -r; column < kTileX + r; column += kTileX) {
        tile.wide_pixels(thread, row, column, wide);
        __syncthreads();
        tile.wide_rows(thread, column, wide);
        __syncthreads();
      }
      tile.wide_columns(thread, row, wide);
      __syncthreads();
    }
  }
  const float gray = tile.finish_pass(thread, mode, memory);
  if (tile.is_last()) return;
  const float sum = block_sum(gray);
  if (thread == 0) job.gray_after[tile.gray_index(blockIdx.x)] = sum;
}

constexpr int kNumbers = 500;  // per launch: what the 4 KB of a kernel's arguments hold

struct Numbers {
  std::int64_t values[kNumbers];
};

__global__ void write_numbers(const __grid_constant__ Numbers numbers, int count, std::int64_t* out) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = numbers.values[i];
}

// Bytes that one image takes in the workspace: its pixels and sums, once or twice.
struct Layout {
  std::int64_t pixels, sums, copies;

  Layout(const View& view, std::int64_t channels, std::int64_t passes) {
    const bool color = channels == 3;
    const std::int64_t planes = color ? 1 : std::min<std::int64_t>(channels, kPlanes);
    const std::int64_t packed = color ? sizeof(HalfMemory::Packed<3>) : sizeof(HalfMemory::Packed<1>);
    const std::int64_t tiles = tiles_along(static_cast<int>(view.height), kTileY) *
                               static_cast<std::int64_t>(tiles_along(static_cast<int>(view.width), kTileX));
    pixels = rounded(planes * view.height * view.width * packed);
    sums = rounded(planes * tiles * static_cast<std::int64_t>(sizeof(float)));
    copies = std::min<std::int64_t>(passes, 2);
  }
  static std::int64_t rounded(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }
  std::int64_t per_image() const { return copies * (pixels + sums); }
};

std::int64_t passes_of(const View& view) {
  return view.passes < 0 ? view.steps : std::min(view.passes, view.steps);
}

constexpr std::int64_t kMostImages = 65535;  // a grid's second dimension

Job job_of(const Problem& problem) {
  Job job = {};
  const Images& images = problem.images;
  job.table = images.table;
  job.data = images.data;
  job.source_height = static_cast<int>(images.height);
  job.source_width = static_cast<int>(images.width);
  job.image_stride = images.image_stride;
  job.channel_stride = images.channel_stride;
  job.row_stride = images.row_stride;
  job.pixel_stride = images.pixel_stride;
  job.parameters = problem.view.parameters;
  job.steps = static_cast<int>(problem.view.steps);
  job.passes = static_cast<int>(passes_of(problem.view));
  job.height = static_cast<int>(problem.view.height);
  job.width = static_cast<int>(problem.view.width);
  job.channels = static_cast<int>(problem.channels);
  job.out = problem.view.out;
  job.dtype = problem.view.dtype;
  return job;
}

// All passes of some images and channels.
template <int N>
void launch(const Problem& problem, Job job, int planes, int images, const Layout& layout,
            std::int64_t capacity) {
  const auto stream = static_cast<cudaStream_t>(problem.stream);
  const dim3 grid(tiles_along(job.height, kTileY) * tiles_along(job.width, kTileX), images, planes);
  auto* pixels = static_cast<unsigned char*>(problem.workspace);
  auto* sums = pixels + layout.copies * capacity * layout.pixels;
  for (job.pass = 0; job.pass <= job.passes; ++job.pass) {
    // The last pass writes neither, so that a single one needs one copy.
    const std::int64_t mine = job.pass % 2 * capacity, other = (job.pass + 1) % 2 * capacity;
    job.after = pixels + mine * layout.pixels;
    job.gray_after = reinterpret_cast<float*>(sums + mine * layout.sums);
    job.before = pixels + other * layout.pixels;
    job.gray_before = reinterpret_cast<const float*>(sums + other * layout.sums);
    if (job.pass > 0) {
      continue_views<N><<<grid, kThreads, pass_memory<N>(), stream>>>(job);
      check_launch("continue_views");
    } else if (problem.view.bicubic) {
      resample_views<N, true><<<grid, kThreads, 0, stream>>>(job);
      check_launch("resample_views");
    } else {
      resample_views<N, false><<<grid, kThreads, 0, stream>>>(job);
      check_launch("resample_views");
    }
  }
}

template <int N>
void augment(const Problem& problem) {
  const Layout layout(problem.view, problem.channels, passes_of(problem.view));
  const std::int64_t per_image = layout.per_image();
  const std::int64_t capacity =
      std::min(kMostImages, per_image > 0 ? problem.workspace_bytes / per_image : kMostImages);
  if (capacity < 1) throw std::invalid_argument("augment_view: the workspace does not hold one image");
  if (pass_memory<N>() > 48 * 1024) {
    check(cudaFuncSetAttribute(continue_views<N>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               pass_memory<N>()),
          "cudaFuncSetAttribute");
  }
  const int step = N == 3 ? 3 : kPlanes;
  Job job = job_of(problem);
  for (job.first_channel = 0; job.first_channel < job.channels; job.first_channel += step) {
    const int count = std::min(job.channels - job.first_channel, step);
    for (int c = 0; c < count; ++c) {
      job.mean[c] = problem.mean[job.first_channel + c];
      job.scale[c] = 1.0f / problem.std[job.first_channel + c];
    }
    for (job.first = 0; job.first < problem.batch; job.first += capacity) {
      const auto images = static_cast<int>(std::min(problem.batch - job.first, capacity));
      launch<N>(problem, job, N == 3 ? 1 : count, images, layout, capacity);
    }
  }
}

}  // namespace

void write_table(const std::int64_t* numbers, std::int64_t count, std::int64_t* out, int device,
                 void* stream) {
  check(cudaSetDevice(device), "cudaSetDevice");
  Numbers some;
  for (std::int64_t first = 0; first < count; first += kNumbers) {
    const auto length = static_cast<int>(std::min<std::int64_t>(count - first, kNumbers));
    std::copy_n(numbers + first, length, some.values);
    write_numbers<<<1, 256, 0, static_cast<cudaStream_t>(stream)>>>(some, length, out + first);
    check_launch("write_numbers");
  }
}

std::int64_t workspace_bytes(const Problem& problem, std::int64_t images) {
  const Layout layout(problem.view, problem.channels, passes_of(problem.view));
  return layout.per_image() * std::min({images, problem.batch, kMostImages});
}

void augment_view(const Problem& problem) {
  check(cudaSetDevice(problem.device), "cudaSetDevice");
  if (problem.channels == 3) {
    augment<3>(problem);
  } else {
    augment<1>(problem);
  }
}

}  // namespace fastssl::cuda
