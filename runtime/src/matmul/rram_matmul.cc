// SPDX-License-Identifier: Apache-2.0
#include "matmul/rram_matmul.h"

#include <algorithm>
#include <utility>

#include "base/pages.h"
#include "kernels/dispatch.h"
#include "matmul/rram_matmul_work.h"

namespace rimc {
namespace {

// Word lines of a pass without tiles: the cells of a panel stay in the L2 cache. Passes are
// resumed, so the sums don't depend on it.
constexpr Index kPassRows = 384;
// Multiplications of a task: a few microseconds of one core.
constexpr Index kTaskWork = Index{1} << 18;
// Rows below which a task is bound by the reading of its panels.
constexpr Index kLeastRows = 4;
constexpr Index kMaxTasks = 24;
// Word lines that a task makes at a time: they should stay in the L2 cache.
constexpr Index kChunkFloats = 3 << 15;

// The arguments that all rows of a panel share, whose first column is n0.
kernels::PanelPostOpArgs PanelPostOps(const MatMulPostOps* post_ops, Index n0, Index columns) {
  kernels::PanelPostOpArgs args{};
  if (post_ops == nullptr) return args;
  const auto at = [n0](const float* values) { return values == nullptr ? nullptr : values + n0; };
  args.basis = at(post_ops->basis);
  args.basis_row = post_ops->basis_row;
  args.rank = post_ops->rank;
  args.scale = at(post_ops->scale);
  args.magnitude = at(post_ops->magnitude);
  args.bias = at(post_ops->bias);
  args.row = columns;
  args.activates = post_ops->activates;
  args.low = post_ops->low;
  args.high = post_ops->high;
  return args;
}

// The pointers of a block, whose first row and column these are.
void SetRows(const MatMulPostOps& post_ops, Index row, Index n0, kernels::PanelPostOpArgs* args) {
  args->u = post_ops.u == nullptr ? nullptr : post_ops.u + row * post_ops.rank;
  if (post_ops.residual != nullptr) args->residual = post_ops.residual + row * args->row + n0;
}

}  // namespace

RramMatMul::RramMatMul(const NodeInfo& node) : kernels_(ActiveKernels()) {
  const auto w = node.Constant(1);
  if (!w) Refuse("input w must be an initializer or a constant: crossbars are written once");
  CheckWeights(*w);
  TakeShape(*w);
  periphery_ = ReadPeriphery(node, columns_, depth_, 1);
  Pack(w->Floats());
  PageOut(w->Floats(), static_cast<std::size_t>(w->dims.Count()) * sizeof(float));
}

RramMatMul::RramMatMul(const Tensor& w, Periphery periphery) : kernels_(ActiveKernels()) {
  TakeShape(w);
  periphery_ = std::move(periphery);
  Pack(w.Floats());
}

RramMatMul::RramMatMul(Index depth, Index columns, const float* w, Periphery periphery)
    : kernels_(ActiveKernels()),
      depth_(depth),
      columns_(columns),
      num_vecs_(CeilDiv(columns, kernels_.lanes)),
      periphery_(std::move(periphery)) {
  Pack(w);
}

void RramMatMul::Pack(const float* w) {
  num_panels_ = CeilDiv(num_vecs_, PanelVecs());
  line_row_ = depth_;
  if (PackPairs(w)) return;
  PlanPasses();
  panels_ = PackPanels(w);
  if (periphery_.iv.on) {
    for (int term = 0; term < 2; ++term) {
      terms_[term] = PackPanels(periphery_.iv.Cells(term, w, depth_ * columns_, 1).data());
    }
  }
  if (periphery_.noise.by_cell()) {
    squares_ = PackPanels(periphery_.noise.Cells(w, depth_ * columns_, 1).data());
    kernels_.square(squares_.data(), squares_.data(), depth_ * num_vecs_ * kernels_.lanes);
  }
  if (periphery_.noise.on) deviation_ = PadColumns(periphery_.noise.deviation);
  if (!periphery_.has_adc) return;
  gain_ = PadColumns(periphery_.adc_gain);
  PadConverters();
}

// Converters that float32 and integer sums have in common.
void RramMatMul::PadConverters() {
  back_ = PadColumns(periphery_.adc_back);
  if (!periphery_.adc_offset.empty()) offset_ = PadColumns(periphery_.adc_offset);
}

// Packs int16 pairs and returns true where the sums are integers.
bool RramMatMul::PackPairs(const float* w) {
  if (HasStoredSums() || !periphery_.has_adc) return false;
  pairs_ = {depth_, CeilDiv(depth_, periphery_.num_tiles)};
  integer_cells_ = FindIntegers(periphery_, w, columns_, depth_, pairs_.tile, {1, columns_});
  if (!integer_cells_) return false;
  line_row_ = pairs_.NumPairs();
  PlanPasses();
  std::vector<std::uint32_t> pairs;
  pairs.reserve(static_cast<std::size_t>(line_row_ * columns_));
  for (Index i = 0; i < line_row_; ++i) {
    const PairLayout::Pair pair = pairs_.At(i);
    for (Index n = 0; n < columns_; ++n) {
      const Index second = pair.second < 0 ? -1 : pair.second * columns_ + n;
      pairs.push_back(integer_cells_->PackPair(pair.first * columns_ + n, second));
    }
  }
  panels_ = PackPanels(reinterpret_cast<const float*>(pairs.data()));
  if (periphery_.noise.on) {
    deviation_ = PadColumns(integer_cells_->Unscaled(periphery_.noise.deviation));
  }
  gain_ = PadColumns(integer_cells_->Scaled(periphery_.adc_gain, periphery_.pair_unit));
  PadConverters();
  return true;
}

const RramMatMul& RramMatMul::Floats() const {
  std::call_once(floats_once_, [&] {
    Periphery periphery = periphery_;
    periphery.pair_max = 0.0f;
    const std::vector<float> w = integer_cells_->Weights(columns_, {1, columns_});
    floats_.reset(new RramMatMul(depth_, columns_, w.data(), std::move(periphery)));
  });
  return *floats_;
}

Range RramMatMul::RowsOf(Index rows, Index parts, Index part) {
  const Range groups = Part(CeilDiv(rows, Index{kernels::kDrawRows}), parts, part);
  return {groups.begin * kernels::kDrawRows, std::min(groups.end * kernels::kDrawRows, rows)};
}

void RramMatMul::TakeShape(const Tensor& w) {
  if (w.dims.rank != 2 || w.dims.Count() == 0) {
    Refuse("input w must have the shape [K, N], got ", w.dims);
  }
  depth_ = static_cast<Index>(w.dims[0]);
  columns_ = static_cast<Index>(w.dims[1]);
  num_vecs_ = CeilDiv(columns_, kernels_.lanes);
}

// Vectors of a panel, at most: with noise, as many as leave room for all rows whose draws go
// together.
Index RramMatMul::PanelVecs() const {
  const Index vecs = kernels_.panel_vecs;
  if (!periphery_.noise.on || kernels_.max_rows < kernels::kDrawRows) return vecs;
  return std::min<Index>(vecs, kernels_.max_accumulators / kernels::kDrawRows);
}

// `w` is [line_row_, N].
AlignedFloats RramMatMul::PackPanels(const float* w) const {
  AlignedFloats packed(line_row_ * num_vecs_ * kernels_.lanes);
  for (Index panel = 0; panel < num_panels_; ++panel) {
    const Range vecs = PanelVecs(panel);
    const Index width = vecs.size() * kernels_.lanes;
    const Index n0 = vecs.begin * kernels_.lanes;
    const Index valid = std::min(width, columns_ - n0);
    float* out = packed.data() + n0 * line_row_;
    for (Index k = 0; k < line_row_; ++k) {
      std::copy_n(w + k * columns_ + n0, valid, out + k * width);
    }
  }
  return packed;
}

// Rows [N] to rows of whole vectors.
AlignedFloats RramMatMul::PadColumns(const std::vector<float>& values) const {
  const Index width = num_vecs_ * kernels_.lanes;
  const Index rows = static_cast<Index>(values.size()) / columns_;
  AlignedFloats padded(rows * width);
  for (Index i = 0; i < rows; ++i) {
    std::copy_n(values.data() + i * columns_, columns_, padded.data() + i * width);
  }
  return padded;
}

void RramMatMul::PlanPasses() {
  tiled_ = periphery_.has_adc && periphery_.num_tiles > 1;
  const Index tile = integer_cells_ ? pairs_.TilePairs() : CeilDiv(depth_, periphery_.num_tiles);
  const Index rows = tiled_ ? tile : kPassRows;
  for (Index k = 0; k < line_row_; k += rows) {
    const bool first = k == 0;
    const bool last = k + rows >= line_row_;
    passes_.push_back({{k, std::min(k + rows, line_row_)},
                       tiled_ ? k / rows : 0,
                       !tiled_ && !first,
                       tiled_ || last,
                       !tiled_ || first,
                       last});
  }
}

Dims RramMatMul::OutputDims(const Tensor& x) const {
  if (x.dims.rank == 0 || x.dims[x.dims.rank - 1] != depth_) {
    Refuse("input x must have the shape [..., ", depth_, "], got ", x.dims);
  }
  Dims y_dims = x.dims;
  y_dims.size[x.dims.rank - 1] = columns_;
  return y_dims;
}

Output RramMatMul::Compute(const Context& context, const MatMulPostOps* post_ops) const {
  return ComputeRun(context, post_ops, runs_.fetch_add(1, std::memory_order_relaxed));
}

Output RramMatMul::ComputeRun(const Context& context, const MatMulPostOps* post_ops,
                              std::uint64_t number) const {
  const Tensor x = context.Input(0);
  const Dims y_dims = OutputDims(x);
  Work work{};
  work.post_ops = post_ops;
  work.x = x.Floats();
  work.y = context.Output(0, y_dims);
  work.rows = x.dims.Count() / depth_;
  if (work.rows == 0) return {work.y, y_dims};

  PlanTasks(&work);
  const bool stored = HasStoredSums();
  const Index all_lines = periphery_.num_planes() * work.rows * line_row_;
  const Index line_floats = periphery_.has_line && !work.task_lines ? all_lines : 0;
  const Index square_floats = squares_.size() == 0 ? 0 : all_lines;
  const Index term_floats = periphery_.iv.on ? 2 * all_lines : Index{0};
  const Index task_floats = stored ? StoredFloats() : work.TaskFloats();
  const bool has_sigma = periphery_.noise.on && !stored;
  const Index sigma_floats = has_sigma ? RoundUp(periphery_.num_reads() * work.rows, 16) : Index{0};
  const Index shared_floats = sigma_floats + line_floats + square_floats + term_floats;
  const Scratch scratch(context, shared_floats + work.row_tasks * work.panel_tasks * task_floats);
  float* const lines = scratch.data() + sigma_floats;
  if (has_sigma) work.sigma = scratch.data();
  if (line_floats > 0) work.x_line = lines;
  if (square_floats > 0) work.squares = lines + line_floats;
  if (term_floats > 0) work.terms = lines + line_floats + square_floats;
  work.memory = scratch.data() + shared_floats;
  work.run = number;
  std::atomic<bool> has_nan{false};
  work.has_nan = &has_nan;
  DriveLines(context, work);
  context.ParallelFor(work.row_tasks * work.panel_tasks, [&](Index task) {
    if (stored) {
      RunStoredTask(work, task);
    } else {
      RunTask(work, task);
    }
  });
  return has_nan ? Floats().ComputeRun(context, post_ops, number) : Output{work.y, y_dims};
}

void RramMatMul::PlanTasks(Work* work) const {
  const Index num_products = std::max(work->rows, kLeastRows) * depth_ * columns_;
  const Index tasks = std::clamp(num_products / kTaskWork, Index{1}, kMaxTasks);
  work->row_tasks = std::min(tasks, CeilDiv(work->rows, kTaskRows));
  const Index task_panels =
      CeilDiv(num_panels_, std::min(CeilDiv(tasks, work->row_tasks), num_panels_));
  work->panel_tasks = CeilDiv(num_panels_, task_panels);
  if (HasStoredSums()) return;

  // Where several tasks share rows, their word lines come first.
  work->task_lines = periphery_.has_line && work->panel_tasks == 1;
  const Index group = kernels::kDrawRows;
  work->chunk_rows = std::min(RoundUp(CeilDiv(work->rows, work->row_tasks), group), work->rows);
  if (work->task_lines) {
    const Index most = RoundUp(std::max(kChunkFloats / line_row_, Index{1}), group);
    work->chunk_rows = std::min(work->chunk_rows, most);
    work->line_floats = RoundUp(work->chunk_rows * line_row_, 16);
  }
  if (!periphery_.noise.on) return;
  work->z_floats = group * PanelVecs() * kernels_.lanes;
}

Range RramMatMul::TaskColumns(Range panels) const {
  return {PanelVecs(panels.begin).begin * kernels_.lanes,
          std::min(PanelVecs(panels.end - 1).end * kernels_.lanes, columns_)};
}

bool RramMatMul::DriveRows(const float* x, Index plane, Index rows, float* line) const {
  if (!integer_cells_) {
    kernels_.quantize(x, line, rows * depth_, periphery_.Line(plane));
    return true;
  }
  const kernels::Quantizer quantizer = periphery_.PairQuantizer();
  bool all = true;
  for (Index t = 0; t < pairs_.NumTiles(); ++t) {
    const Range pairs = pairs_.OfTile(t);
    const PairLayout::Pair pair = pairs_.At(pairs.begin);
    kernels::PairPackArgs args{};
    args.from[0] = x + pair.first;
    if (pair.second >= 0) args.from[1] = x + pair.second;
    args.from_row = depth_;
    args.stride = 1;
    args.to = reinterpret_cast<std::uint32_t*>(line) + pairs.begin;
    args.to_row = line_row_;
    args.rows = rows;
    args.width = pairs.size();
    args.second_width = std::min(pairs_.tile, depth_ - t * pairs_.tile) - pairs.size();
    args.quantizer = &quantizer;
    all = kernels_.pack_pairs(args) && all;
  }
  return all;
}

// Word lines of all planes, their squares where these are wanted, and deviations of their noise.
void RramMatMul::DriveLines(const Context& context, const Work& work) const {
  const bool has_sigma = work.sigma != nullptr && !work.task_lines;
  const bool has_more = work.squares != nullptr || work.terms != nullptr || has_sigma;
  if (work.x_line == nullptr && !has_more) return;
  const Index count = work.rows * line_row_;
  const Index parts = std::clamp(count / 65536, Index{1}, std::min(work.rows, kMaxTasks));
  context.ParallelFor(parts * periphery_.num_planes(), [&](Index i) {
    const Index plane = i / parts;
    const Range rows = Part(work.rows, parts, i % parts);
    const Index begin = rows.begin * line_row_;
    const Index floats = rows.size() * line_row_;
    if (work.x_line != nullptr) {
      float* const to = work.x_line + plane * count + begin;
      if (!DriveRows(work.x + rows.begin * depth_, plane, rows.size(), to)) *work.has_nan = true;
    }
    const float* const line = work.Line(plane, line_row_) + begin;
    if (work.squares != nullptr) {
      kernels_.square(line, work.squares + plane * count + begin, floats);
    }
    if (work.terms != nullptr) {
      periphery_.DriveTerms(plane, line, floats,
                            work.Term(0, plane, depth_, periphery_.num_planes()) + begin,
                            work.Term(1, plane, depth_, periphery_.num_planes()) + begin);
    }
    if (has_sigma) FindSigma(line, rows.size(), work.sigma + rows.begin, work.rows);
  });
}

void RramMatMul::RunTask(const Work& work, Index task) const {
  const Range rows = RowsOf(work.rows, work.row_tasks, task % work.row_tasks);
  const Range panels = Part(num_panels_, work.panel_tasks, task / work.row_tasks);
  Chunk chunk{};
  chunk.made_lines = work.memory + task * work.TaskFloats();
  if (work.z_floats > 0) {
    chunk.z = reinterpret_cast<std::uint32_t*>(chunk.made_lines + work.line_floats);
  }
  for (Index row = rows.begin; row < rows.end; row += work.chunk_rows) {
    chunk.rows = {row, std::min(row + work.chunk_rows, rows.end)};
    for (const Pass& pass : passes_) {
      TakeLines(work, pass, &chunk);
      if (chunk.z != nullptr) {
        chunk.sigma = work.sigma + (tiled_ ? pass.tile : 0) * work.rows + chunk.rows.begin;
      }
      for (Index panel = panels.begin; panel < panels.end; ++panel) {
        MultiplyPanel(work, pass, chunk, panel);
      }
    }
  }
}

void RramMatMul::TakeLines(const Work& work, const Pass& pass, Chunk* chunk) const {
  const Index row = chunk->rows.begin;
  if (!work.task_lines) {
    chunk->line = work.Line(0, line_row_) + row * line_row_ + pass.k.begin;
    return;
  }
  if (pass.k.begin == 0) {
    const Index rows = chunk->rows.size();
    if (!DriveRows(work.x + row * depth_, 0, rows, chunk->made_lines)) *work.has_nan = true;
    if (work.sigma != nullptr) FindSigma(chunk->made_lines, rows, work.sigma + row, work.rows);
  }
  chunk->line = chunk->made_lines + pass.k.begin;
}

void RramMatMul::FindSigma(const float* line, Index rows, float* sigma, Index sigma_row) const {
  for (Index tile = 0; tile < periphery_.num_reads(); ++tile) {
    const Range k = tiled_ ? passes_[static_cast<std::size_t>(tile)].k : Range{0, line_row_};
    float* const to = sigma + tile * sigma_row;
    if (integer_cells_) {
      const auto* const pairs = reinterpret_cast<const std::uint32_t*>(line);
      kernels_.pair_row_squares(pairs + k.begin, line_row_, rows, to, k.size());
    } else {
      kernels_.row_squares(line + k.begin, line_row_, rows, to, k.size());
    }
    kernels_.root(to, to, rows);
  }
}

void RramMatMul::MultiplyPanel(const Work& work, const Pass& pass, const Chunk& chunk,
                               Index panel) const {
  const Range vecs = PanelVecs(panel);
  const Index n0 = vecs.begin * kernels_.lanes;
  const Index width = num_vecs_ * kernels_.lanes;
  kernels::BlockArgs args{};
  args.b[0] = panels_.data() + n0 * line_row_ + pass.k.begin * vecs.size() * kernels_.lanes;
  args.a_row = line_row_;
  args.depth = pass.k.size();
  args.c_row = columns_;
  for (Index v = 0; v < vecs.size(); ++v) {
    args.lanes[v] =
        static_cast<int>(std::min<Index>(kernels_.lanes, columns_ - n0 - v * kernels_.lanes));
  }
  if (periphery_.has_adc && pass.whole) {
    const Index converter = (periphery_.adc_tiles == 1 ? 0 : pass.tile) * width + n0;
    args.gain = gain_.data() + converter;
    args.offset = offset_.size() > 0 ? offset_.data() + converter : nullptr;
    args.back = back_.data() + n0;
    args.top = periphery_.adc_top;
  }
  const bool noisy = chunk.z != nullptr && pass.whole;
  if (noisy) args.deviation = deviation_.data() + n0;
  const MatMulPostOps* const post_ops = pass.last ? work.post_ops : nullptr;
  kernels::PanelPostOpArgs panel_post_ops = PanelPostOps(post_ops, n0, columns_);
  if (post_ops != nullptr) args.panel_post_ops = &panel_post_ops;
  args.z_row = vecs.size() * kernels_.lanes;
  args.resume = pass.resume;
  args.first = pass.first;
  args.last = pass.last;
  const kernels::DrawKey key = periphery_.Draws(work.run, 0, pass.tile);
  const auto multiply = [&](Range rows) {
    args.a = chunk.line + rows.begin * line_row_;
    if (noisy) {
      args.z = chunk.z + rows.begin % kernels::kDrawRows * args.z_row;
      args.sigma = chunk.sigma + rows.begin;
    }
    if (post_ops != nullptr) SetRows(*post_ops, chunk.rows.begin + rows.begin, n0, &panel_post_ops);
    for (Index v = 0; v < vecs.size(); ++v) {
      args.c[v] = work.y + (chunk.rows.begin + rows.begin) * columns_ + n0 + v * kernels_.lanes;
    }
    const auto& blocks = integer_cells_ ? kernels_.pairs.matmul_block : kernels_.matmul_block;
    blocks[rows.size() - 1][vecs.size() - 1](args);
  };
  // Draws are made for few sums at a time, next to their products: a processor overlaps the two.
  const Index count = chunk.rows.size();
  const Index step = noisy ? Index{kernels::kDrawRows} : count;
  for (Index row = 0; row < count; row += step) {
    const Index rows = std::min(step, count - row);
    if (noisy) {
      kernels_.draw({key, static_cast<std::uint64_t>(chunk.rows.begin + row), rows,
                     static_cast<std::uint32_t>(n0), nullptr, args.z_row, chunk.z, args.z_row});
    }
    const Index num_blocks = CeilDiv(rows, kernels_.PanelRows(vecs.size()));
    for (Index block = 0; block < num_blocks; ++block) {
      const Range part = Part(rows, num_blocks, block);
      multiply({row + part.begin, row + part.end});
    }
  }
}

}  // namespace rimc
