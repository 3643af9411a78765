// Shared by every convolution kernel; `src/gpu/shaders.rs` puts `alias Elem` (what is computed with), `alias Stored` (what slabs
// and filters are kept in), the tile constants and this text
// in front of each of them. A kernel computes
//   output[n, o, z, y, x] (+)= sum over c, kz, ky, kx of
//       slab[n, g*C/G + c, z*sz + kz*dz, y*sy + ky*dy, x*sx + kx*dx] * filters[o, c, kz, ky, kx]
// over three spatial axes without padding. The pixels of all images of a batch form one axis of `columns`. Sums of
// more than RUN terms are added up from partial sums: rounding grows with the square root of a run, and the decoder
// multiplies it by its condition number.

// Mirrors `src/gpu/params.rs`; a test compares the offsets.
struct Params {
    // The layer.
    columns: u32,        // N * output plane
    out_plane: u32,
    out_h: u32,
    out_w: u32,
    out_channels: u32,
    group_out: u32,      // O / groups
    in_channels: u32,
    group_in: u32,       // C / groups
    in_plane: u32,
    in_row: u32,         // W of the slab: the step of its y axis
    in_slice: u32,       // H * W of the slab: the step of its z axis
    taps: u32,           // kernel points
    kernel_h: u32,
    kernel_w: u32,
    stride_z: u32,
    stride_y: u32,
    stride_x: u32,
    // Steps of the slab index from one tap to the next: along x, when x wraps, when y wraps too (both modulo 2^32).
    step_x: u32,
    step_y: u32,
    step_z: u32,
    dilated_row: u32,    // dilation_y * in_row
    dilated_slice: u32,  // dilation_z * in_slice
    // The grid: blocks of columns, blocks of output channels within a group.
    column_blocks: u32,
    channel_blocks: u32,
    // This dispatch: workgroups [first, end) of the grid, `grid_x` of them a row of the dispatch.
    first_workgroup: u32,
    end_workgroup: u32,
    grid_x: u32,
    // This dispatch's part of the reduction, and whether earlier parts are in `output` already.
    channel_begin: u32,
    channel_end: u32,
    tap_begin: u32,
    tap_end: u32,
    accumulate: u32,
    last_tap: u32,       // offset in the slab of the last tap from the first
    // Where the reduction is split among workgroups: into how many parts of how many steps of K, and the elements of
    // the output, which are those of each part's sums. One split of everything elsewhere.
    splits: u32,
    split_steps: u32,
    outputs: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

// Index in the slab of the first tap of a column's window, in channel 0 of its image.
fn window(column: u32) -> u32 {
    let pixel = column % params.out_plane;
    let x = pixel % params.out_w;
    let y = pixel / params.out_w % params.out_h;
    let z = pixel / (params.out_w * params.out_h);
    return column / params.out_plane * params.in_channels * params.in_plane
        + z * params.stride_z * params.in_slice + y * params.stride_y * params.in_row + x * params.stride_x;
}

// Where a walk over the taps of a kernel stands.
struct Tap {
    at: u32,  // offset in the slab from the window's first element
    x: u32,
    y: u32,
}

fn first_tap() -> Tap {
    let x = params.tap_begin % params.kernel_w;
    let y = params.tap_begin / params.kernel_w % params.kernel_h;
    let z = params.tap_begin / (params.kernel_w * params.kernel_h);
    return Tap(z * params.dilated_slice + y * params.dilated_row + x * params.step_x, x, y);
}

// The following tap, without a division: the walk is the inner loop of the kernels.
fn next_tap(tap: Tap) -> Tap {
    let wrap_x = tap.x + 1u == params.kernel_w;
    let wrap_y = wrap_x && tap.y + 1u == params.kernel_h;
    let step = select(params.step_x, select(params.step_y, params.step_z, wrap_y), wrap_x);
    return Tap(tap.at + step, select(tap.x + 1u, 0u, wrap_x), select(tap.y + select(0u, 1u, wrap_x), 0u, wrap_y));
}

// Where a walk over all terms of a sum stands: channel after channel, each with all its taps.
struct Term {
    at: u32,  // offset in the slab from the window's first element, in the channel where the walk began
    x: u32,
    y: u32,
    tap: u32,
}

fn first_term() -> Term {
    let tap = first_tap();
    return Term(tap.at, tap.x, tap.y, params.tap_begin);
}

fn next_term(term: Term) -> Term {
    let tap = next_tap(Tap(term.at, term.x, term.y));
    let last = term.tap + 1u == params.taps;
    // From the last tap of a channel to the first of the next: a plane further, all steps of the window back.
    let back = params.in_plane - params.last_tap;
    return Term(
        select(tap.at, term.at + back, last),
        select(tap.x, 0u, last),
        select(tap.y, 0u, last),
        select(term.tap + 1u, 0u, last),
    );
}

// Index in the output of an output channel of the whole layer and a column.
fn output_at(channel: u32, column: u32) -> u32 {
    return (column / params.out_plane * params.out_channels + channel) * params.out_plane
        + column % params.out_plane;
}
