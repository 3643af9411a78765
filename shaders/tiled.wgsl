// For real GPUs: implicit GEMM. Per group, M = output channels, N = columns, K = C/G * taps. A workgroup of 16 x 16
// threads computes a tile of 16*ROWS x 16*COLS outputs, ROWS x COLS a thread in named registers, DEPTH steps of K
// at a time from shared memory; the next step's elements are fetched into registers while this one is computed.
//
// Neighbouring threads fetch neighbouring columns and store neighbouring outputs. The filters lie in vectors along M,
// what is fetched of the slab in vectors along K: four steps of K cost a thread one vector of each of its columns and
// one of each group of rows a step, and none of them meets a bank conflict.
//
// filters: [group][K, padded to whole steps][O/G, padded to a multiple of 4], zeros in the padding
// output:  the output, or the sums of each split, [splits][output], which `merge.wgsl` adds up
// offsets: [K, padded likewise], the slab offset of each (channel, tap) from the window's first element in the
//          group's first channel

#[q:QUADS] alias Rows = vec4<Elem>;
#[q:QUADS] alias StoredRows = vec4<Stored>;
#[p:PAIRS] alias Rows = vec2<Elem>;
#[p:PAIRS] alias StoredRows = vec2<Stored>;

@group(0) @binding(1) var<storage, read> slab: array<Stored>;
@group(0) @binding(2) var<storage, read> filters: array<StoredRows>;
@group(0) @binding(3) var<storage, read> offsets: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> output: array<Elem>;

const TILE_M = 16u * ROWS;
const TILE_N = 16u * COLS;
// Vectors that a step of K has in the tile.
const TILE_ROWS = TILE_M / WIDTH;

var<workgroup> filter_tile: array<Rows, DEPTH * TILE_ROWS>;
var<workgroup> slab_tile: array<vec4<Elem>, DEPTH / 4u * TILE_N>;

fn filter_rows(at: u32, valid: bool) -> Rows {
    // Past the last channel a zero adds nothing.
    if valid {
        return Rows(filters[at]);
    }
    return Rows();
}

// Four steps of K, from k, of the column whose window begins at `first`. Past the end of K a zero adds nothing,
// whatever the slab holds where the padded offsets point.
fn slab_steps(first: u32, k: u32, end: u32) -> vec4<Elem> {
    let at = first + offsets[k / 4u];
    let steps = vec4<Elem>(vec4<Stored>(slab[at.x], slab[at.y], slab[at.z], slab[at.w]));
    return select(vec4<Elem>(), steps, vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(end));
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    if linear >= params.end_workgroup {
        return;
    }
    let tile_column = linear % params.column_blocks * TILE_N;
    let row = linear / params.column_blocks;
    let groups = params.out_channels / params.group_out;
    let group = row / params.channel_blocks % groups;
    let split = row / params.channel_blocks / groups;
    let tile_channel = row % params.channel_blocks * TILE_M;

    // Parts and splits of the reduction are ranges of K, which begin at whole steps.
    let begin = params.tap_begin + split * params.split_steps;
    let end = min(params.tap_end, begin + params.split_steps);

    // What this thread fetches: FILTER_LOADS vectors of filters, and four steps of one column of the slab.
    let row_vectors = (params.group_out + 3u) / 4u * (4u / WIDTH);
    let padded_k = (params.group_in * params.taps + DEPTH - 1u) / DEPTH * DEPTH;
    let filter_row = tile_channel / WIDTH + local % TILE_ROWS;
    let filter_valid = filter_row < row_vectors;
    let filter_k = local / TILE_ROWS;
    let filter_first = group * padded_k * row_vectors + filter_row;
    let slab_k = local / TILE_N * 4u;
    let slab_first = group * params.group_in * params.in_plane
        + window(min(tile_column + local % TILE_N, params.columns - 1u));

    // What it computes: groups of WIDTH rows, 16*WIDTH rows apart, and columns 16 apart.
    let thread_m = local / 16u;
    let thread_n = local % 16u;
    #[g:GROUPS, j:COLS] var sum_${g}_${j} = Rows();
    #[g:GROUPS, j:COLS] var total_${g}_${j} = Rows();
    var run = 0u;

    #[l:FILTER_LOADS] var f_${l} = filter_rows(filter_first + (begin + filter_k + ${l}u * (256u / TILE_ROWS)) * row_vectors, filter_valid);
    var s = slab_steps(slab_first, begin + slab_k, end);
    for (var k = begin; k < end; k += DEPTH) {
        #[l:FILTER_LOADS] filter_tile[local + ${l}u * 256u] = f_${l};
        slab_tile[local] = s;
        workgroupBarrier();
        let next = k + DEPTH;
        if next < end {
            #[l:FILTER_LOADS] f_${l} = filter_rows(filter_first + (next + filter_k + ${l}u * (256u / TILE_ROWS)) * row_vectors, filter_valid);
            s = slab_steps(slab_first, next + slab_k, end);
        }
        #{q:DEPTH_QUADS
        #[j:COLS] let b_${q}_${j} = slab_tile[${q}u * TILE_N + thread_n + ${j}u * 16u];
        #{d:4
        #[g:GROUPS] let a_${q}_${d}_${g} = filter_tile[(${q}u * 4u + ${d}u) * TILE_ROWS + thread_m + ${g}u * 16u];
        #[g:GROUPS, j:COLS] sum_${g}_${j} = fma(a_${q}_${d}_${g}, Rows(b_${q}_${j}[${d}]), sum_${g}_${j});
        #}
        #}
        run += DEPTH;
        if run >= RUN {
            #[g:GROUPS, j:COLS] total_${g}_${j} += sum_${g}_${j};
            #[g:GROUPS, j:COLS] sum_${g}_${j} = Rows();
            run = 0u;
        }
        workgroupBarrier();
    }
    #[g:GROUPS, j:COLS] sum_${g}_${j} += total_${g}_${j};
    #{j:COLS
    let column_${j} = tile_column + thread_n + ${j}u * 16u;
    if column_${j} < params.columns {
        #{g:GROUPS, w:WIDTH
        let channel_${g}_${w} = tile_channel + (thread_m + ${g}u * 16u) * WIDTH + ${w}u;
        if channel_${g}_${w} < params.group_out {
            let at = split * params.outputs
                + output_at(group * params.group_out + channel_${g}_${w}, column_${j});
            var value = sum_${g}_${j}[${w}];
            #{a:ADDS
            if params.accumulate != 0u {
                value += output[at];
            }
            #}
            output[at] = value;
        }
        #}
    }
    #}
}
