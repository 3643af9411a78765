// For software adapters with subgroups: BLOCKS * 8 output channels x PIXELS columns a thread in named registers,
// no shared memory. Storage loads cost one scalar load a lane there, so the eight weights of a channel block are
// loaded once, one a lane, and spread by shuffles with constant lanes, which are vector instructions.
//
// filters: [group][channel block][C/G, taps][BLOCKS * 8], zero where a group has no such channel
// Needs subgroups of at least 8 lanes.

@group(0) @binding(1) var<storage, read> slab: array<Elem>;
@group(0) @binding(2) var<storage, read> filters: array<Elem>;
@group(0) @binding(3) var<storage, read_write> output: array<Elem>;

override workgroup_x: u32 = 64u;

@compute @workgroup_size(workgroup_x)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    if linear >= params.end_workgroup {
        return;
    }
    let first_column = linear % params.column_blocks * (workgroup_x * PIXELS) + local;
    let row = linear / params.column_blocks;
    let group = row / params.channel_blocks;
    let block = row % params.channel_blocks;
    let first_plane = (group * params.group_in + params.channel_begin) * params.in_plane;
    // Columns past the end read the last one's window: all lanes must stay for the shuffles.
    #[p:PIXELS] let plane_${p} = first_plane + window(min(first_column + ${p}u * workgroup_x, params.columns - 1u));
    var weight = ((row * params.group_in + params.channel_begin) * params.taps + params.tap_begin) * (BLOCKS * 8u)
        + lane % 8u;
    #[b:BLOCKS, j:8, p:PIXELS] var sum_${b}_${j}_${p} = Elem(0);
    #[b:BLOCKS, j:8, p:PIXELS] var total_${b}_${j}_${p} = Elem(0);
    // Two terms at a time, over channels and taps alike: each assignment in a loop costs a blend beside its sums there,
    // and so does each variable that a condition may change.
    let terms = (params.channel_end - params.channel_begin) * (params.tap_end - params.tap_begin);
    var term = first_term();
    for (var begin = 0u; begin < terms; begin += RUN) {
        let end = min(begin + RUN, terms);
        var k = begin;
        for (; k + 2u <= end; k += 2u) {
            let next = next_term(term);
            #[p:PIXELS] let xa_${p} = slab[plane_${p} + term.at];
            #[p:PIXELS] let xb_${p} = slab[plane_${p} + next.at];
            #{b:BLOCKS
            let a_${b} = filters[weight + ${b}u * 8u];
            let b_${b} = filters[weight + (BLOCKS + ${b}u) * 8u];
            #{j:8
            let wa_${b}_${j} = subgroupShuffle(a_${b}, ${j}u);
            let wb_${b}_${j} = subgroupShuffle(b_${b}, ${j}u);
            #[p:PIXELS] sum_${b}_${j}_${p} = fma(wb_${b}_${j}, xb_${p}, fma(wa_${b}_${j}, xa_${p}, sum_${b}_${j}_${p}));
            #}
            #}
            weight += BLOCKS * 16u;
            term = next_term(next);
        }
        for (; k < end; k++) {
            #[p:PIXELS] let x_${p} = slab[plane_${p} + term.at];
            #{b:BLOCKS
            let mine_${b} = filters[weight + ${b}u * 8u];
            #{j:8
            let w_${b}_${j} = subgroupShuffle(mine_${b}, ${j}u);
            #[p:PIXELS] sum_${b}_${j}_${p} = fma(w_${b}_${j}, x_${p}, sum_${b}_${j}_${p});
            #}
            #}
            weight += BLOCKS * 8u;
            term = next_term(term);
        }
        #[b:BLOCKS, j:8, p:PIXELS] total_${b}_${j}_${p} += sum_${b}_${j}_${p};
        #[b:BLOCKS, j:8, p:PIXELS] sum_${b}_${j}_${p} = Elem(0);
    }
    #[b:BLOCKS, j:8, p:PIXELS] sum_${b}_${j}_${p} += total_${b}_${j}_${p};
    #{p:PIXELS
    let column_${p} = first_column + ${p}u * workgroup_x;
    if column_${p} < params.columns {
        #{b:BLOCKS, j:8
        if block * (BLOCKS * 8u) + ${b}u * 8u + ${j}u < params.group_out {
            let at = output_at(group * params.group_out + block * (BLOCKS * 8u) + ${b}u * 8u + ${j}u, column_${p});
            if params.accumulate != 0u {
                sum_${b}_${j}_${p} += output[at];
            }
            output[at] = sum_${b}_${j}_${p};
        }
        #}
    }
    #}
}
