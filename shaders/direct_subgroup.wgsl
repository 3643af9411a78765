// For software adapters with subgroups: CHANNELS output channels x PIXELS columns a thread in named registers, no shared
// memory. A load costs a loop over the lanes there, as much as some twenty vector instructions, whether it fetches one
// element a lane or four. So each lane loads WIDTH weights at once, and shuffles with constant lanes, which are cheap,
// spread the weights of 8 lanes; each of them meets PIXELS columns, and each column all channels.
//
// filters: [group][channel block][C/G, taps, one more if they are odd][CHANNELS], zero where there is no such channel or term
// Needs subgroups of at least 8 lanes.

#[q:QUADS] alias Weights = vec4<Stored>;
#[p:PAIRS] alias Weights = vec2<Stored>;
#[o:ONES] alias Weights = Stored;

@group(0) @binding(1) var<storage, read> slab: array<Stored>;
@group(0) @binding(2) var<storage, read> filters: array<Weights>;
@group(0) @binding(3) var<storage, read_write> output: array<Elem>;

// One weight of several.
fn part(weights: Weights, at: u32) -> Elem {
    #[o:ONES] return Elem(weights);
    #[v:VECTORS] return Elem(weights[at]);
}

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
    let steps = (params.group_in * params.taps + 1u) / 2u * 2u;
    let first_step = row * steps + params.channel_begin * params.taps + params.tap_begin;
    var weight = first_step * (BLOCKS * 8u) + lane % 8u;
    #[b:BLOCKS, j:8, w:WIDTH, p:PIXELS] var sum_${b}_${j}_${w}_${p} = Elem(0);
    #[b:BLOCKS, j:8, w:WIDTH, p:PIXELS] var total_${b}_${j}_${w}_${p} = Elem(0);
    // Two terms at a time, over channels and taps alike: each assignment in a loop costs a blend beside its sums there,
    // and so does each variable that a condition may change. After an odd last term comes one of zeros.
    let terms = (params.channel_end - params.channel_begin) * (params.tap_end - params.tap_begin);
    var term = first_term();
    for (var begin = 0u; begin < terms; begin += RUN) {
        let end = min(begin + RUN, terms);
        for (var k = begin; k < end; k += 2u) {
            let next = next_term(term);
            let two = k + 1u < end;
            #[p:PIXELS] let xa_${p} = Elem(slab[plane_${p} + term.at]);
            #[p:PIXELS] let xb_${p} = select(Elem(0), Elem(slab[plane_${p} + next.at]), two);
            #{b:BLOCKS
            let a_${b} = filters[weight + ${b}u * 8u];
            let b_${b} = filters[weight + (BLOCKS + ${b}u) * 8u];
            #{j:8, w:WIDTH
            let wa_${b}_${j}_${w} = subgroupShuffle(part(a_${b}, ${w}u), ${j}u);
            let wb_${b}_${j}_${w} = subgroupShuffle(part(b_${b}, ${w}u), ${j}u);
            #[p:PIXELS] sum_${b}_${j}_${w}_${p} = fma(wb_${b}_${j}_${w}, xb_${p}, fma(wa_${b}_${j}_${w}, xa_${p}, sum_${b}_${j}_${w}_${p}));
            #}
            #}
            weight += BLOCKS * 16u;
            term = next_term(next);
        }
        #[b:BLOCKS, j:8, w:WIDTH, p:PIXELS] total_${b}_${j}_${w}_${p} += sum_${b}_${j}_${w}_${p};
        #[b:BLOCKS, j:8, w:WIDTH, p:PIXELS] sum_${b}_${j}_${w}_${p} = Elem(0);
    }
    #{p:PIXELS
    let column_${p} = first_column + ${p}u * workgroup_x;
    if column_${p} < params.columns {
        #{b:BLOCKS, j:8, w:WIDTH
        let channel_${b}_${j}_${w}_${p} = block * CHANNELS + (${b}u * 8u + ${j}u) * WIDTH + ${w}u;
        if channel_${b}_${j}_${w}_${p} < params.group_out {
            let at = output_at(group * params.group_out + channel_${b}_${j}_${w}_${p}, column_${p});
            #{a:ADDS
            if params.accumulate != 0u {
                total_${b}_${j}_${w}_${p} += output[at];
            }
            #}
            output[at] = total_${b}_${j}_${w}_${p};
        }
        #}
    }
    #}
}
