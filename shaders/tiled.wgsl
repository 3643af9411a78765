// For real GPUs: implicit GEMM. Per group, M = output channels, N = columns, K = C/G * taps. A workgroup of 16 x 16
// threads computes a tile of 16*ROWS x 16*COLS outputs, ROWS x COLS a thread in named registers, DEPTH steps of K
// at a time from shared memory; the next step's elements are fetched into registers while this one is computed.
//
// filters: [group][K][O/G]
// offsets: [K], the slab offset of each (channel, tap) from the window's first element in the group's first channel

@group(0) @binding(1) var<storage, read> slab: array<Elem>;
@group(0) @binding(2) var<storage, read> filters: array<Elem>;
@group(0) @binding(3) var<storage, read> offsets: array<u32>;
@group(0) @binding(4) var<storage, read_write> output: array<Elem>;

const TILE_M = 16u * ROWS;
const TILE_N = 16u * COLS;

var<workgroup> filter_tile: array<Elem, DEPTH * TILE_M>;
var<workgroup> slab_tile: array<Elem, DEPTH * TILE_N>;

fn filter_element(first: u32, k: u32, m: u32) -> Elem {
    // Past the end of the channels or of this part of the reduction a zero adds nothing.
    if m < params.group_out && k < reduction_end() {
        return filters[first + k * params.group_out];
    }
    return Elem(0);
}

fn slab_element(first: u32, k: u32) -> Elem {
    if k < reduction_end() {
        return slab[first + offsets[k]];
    }
    return Elem(0);
}

// Parts of the reduction are whole channels, or some taps of one channel: one range of K either way.
fn reduction_end() -> u32 {
    return (params.channel_end - 1u) * params.taps + params.tap_end;
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    if linear >= params.end_workgroup {
        return;
    }
    let tile_column = linear % params.column_blocks * TILE_N;
    let row = linear / params.column_blocks;
    let group = row / params.channel_blocks;
    let tile_channel = row % params.channel_blocks * TILE_M;

    // What this thread fetches: one channel of the filters and one column of the slab, every 256/TILE steps of K.
    let filter_m = tile_channel + local % TILE_M;
    let filter_k = local / TILE_M;
    let filter_first = group * params.group_in * params.taps * params.group_out + filter_m;
    let slab_k = local / TILE_N;
    let slab_first = group * params.group_in * params.in_plane
        + window(min(tile_column + local % TILE_N, params.columns - 1u));

    // What it computes: rows thread_m.., columns thread_n.. of the tile.
    let thread_m = local / 16u * ROWS;
    let thread_n = local % 16u * COLS;
    #[i:ROWS, j:COLS] var sum_${i}_${j} = Elem(0);
    #[i:ROWS, j:COLS] var total_${i}_${j} = Elem(0);
    var run = 0u;

    let begin = params.channel_begin * params.taps + params.tap_begin;
    let end = reduction_end();
    #[l:FILTER_LOADS] var f_${l} = filter_element(filter_first, begin + filter_k + ${l}u * (256u / TILE_M), filter_m);
    #[l:SLAB_LOADS] var s_${l} = slab_element(slab_first, begin + slab_k + ${l}u * (256u / TILE_N));
    for (var k = begin; k < end; k += DEPTH) {
        #[l:FILTER_LOADS] filter_tile[local + ${l}u * 256u] = f_${l};
        #[l:SLAB_LOADS] slab_tile[local + ${l}u * 256u] = s_${l};
        workgroupBarrier();
        let next = k + DEPTH;
        #[l:FILTER_LOADS] f_${l} = filter_element(filter_first, next + filter_k + ${l}u * (256u / TILE_M), filter_m);
        #[l:SLAB_LOADS] s_${l} = slab_element(slab_first, next + slab_k + ${l}u * (256u / TILE_N));
        #{d:DEPTH
        #[i:ROWS] let a_${d}_${i} = filter_tile[${d}u * TILE_M + thread_m + ${i}u];
        #[j:COLS] let b_${d}_${j} = slab_tile[${d}u * TILE_N + thread_n + ${j}u];
        #[i:ROWS, j:COLS] sum_${i}_${j} = fma(a_${d}_${i}, b_${d}_${j}, sum_${i}_${j});
        #}
        run += DEPTH;
        if run >= RUN {
            #[i:ROWS, j:COLS] total_${i}_${j} += sum_${i}_${j};
            #[i:ROWS, j:COLS] sum_${i}_${j} = Elem(0);
            run = 0u;
        }
        workgroupBarrier();
    }
    #[i:ROWS, j:COLS] sum_${i}_${j} += total_${i}_${j};
    #{i:ROWS, j:COLS
    if tile_channel + thread_m + ${i}u < params.group_out && tile_column + thread_n + ${j}u < params.columns {
        let at = output_at(group * params.group_out + tile_channel + thread_m + ${i}u, tile_column + thread_n + ${j}u);
        if params.accumulate != 0u {
            sum_${i}_${j} += output[at];
        }
        output[at] = sum_${i}_${j};
    }
    #}
}
