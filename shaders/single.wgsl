// For groups of few output channels, depthwise above all: one channel x PIXELS columns a thread, so that a weight is
// read once for all of them. No shared memory, no subgroups.
//
// filters: [O, C/G, taps]

@group(0) @binding(1) var<storage, read> slab: array<Stored>;
@group(0) @binding(2) var<storage, read> filters: array<Stored>;
@group(0) @binding(3) var<storage, read_write> output: array<Elem>;

override workgroup_x: u32 = 64u;

@compute @workgroup_size(workgroup_x)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    if linear >= params.end_workgroup {
        return;
    }
    let first_column = linear % params.column_blocks * (workgroup_x * PIXELS) + local;
    let channel = linear / params.column_blocks;
    let group = channel / params.group_out;
    let first_plane = (group * params.group_in + params.channel_begin) * params.in_plane;
    // Columns past the end read the last one's window, and are not written.
    #[p:PIXELS] let plane_${p} = first_plane + window(min(first_column + ${p}u * workgroup_x, params.columns - 1u));
    var weight = (channel * params.group_in + params.channel_begin) * params.taps + params.tap_begin;
    #[p:PIXELS] var sum_${p} = Elem(0);
    #[p:PIXELS] var total_${p} = Elem(0);
    // Two terms at a time: see `direct_subgroup.wgsl`.
    let terms = (params.channel_end - params.channel_begin) * (params.tap_end - params.tap_begin);
    var term = first_term();
    for (var begin = 0u; begin < terms; begin += RUN) {
        let end = min(begin + RUN, terms);
        var k = begin;
        for (; k + 2u <= end; k += 2u) {
            let next = next_term(term);
            let a = Elem(filters[weight]);
            let b = Elem(filters[weight + 1u]);
            #[p:PIXELS] sum_${p} = fma(b, Elem(slab[plane_${p} + next.at]), fma(a, Elem(slab[plane_${p} + term.at]), sum_${p}));
            weight += 2u;
            term = next_term(next);
        }
        for (; k < end; k++) {
            let a = Elem(filters[weight]);
            #[p:PIXELS] sum_${p} = fma(a, Elem(slab[plane_${p} + term.at]), sum_${p});
            weight++;
            term = next_term(term);
        }
        #[p:PIXELS] total_${p} += sum_${p};
        #[p:PIXELS] sum_${p} = Elem(0);
    }
    #{p:PIXELS
    let column_${p} = first_column + ${p}u * workgroup_x;
    if column_${p} < params.columns {
        let at = output_at(channel, column_${p});
        #{a:ADDS
        if params.accumulate != 0u {
            total_${p} += output[at];
        }
        #}
        output[at] = total_${p};
    }
    #}
}
