// For software adapters without usable subgroups: BLOCKS * 4 output channels x PIXELS columns a thread in named
// registers, no shared memory; weights come as vec4.
//
// filters: [group][channel block][C/G, taps][BLOCKS * 4], zero where a group has no such channel

@group(0) @binding(1) var<storage, read> slab: array<Stored>;
@group(0) @binding(2) var<storage, read> filters: array<vec4<Stored>>;
@group(0) @binding(3) var<storage, read_write> output: array<Elem>;

override workgroup_x: u32 = 64u;

@compute @workgroup_size(workgroup_x)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    if linear >= params.end_workgroup {
        return;
    }
    let first_column = linear % params.column_blocks * (workgroup_x * PIXELS) + local;
    let row = linear / params.column_blocks;
    let group = row / params.channel_blocks;
    let block = row % params.channel_blocks;
    let first_plane = (group * params.group_in + params.channel_begin) * params.in_plane;
    #[p:PIXELS] var plane_${p} = first_plane + window(min(first_column + ${p}u * workgroup_x, params.columns - 1u));
    var weight = ((row * params.group_in + params.channel_begin) * params.taps + params.tap_begin) * BLOCKS;
    #[b:BLOCKS, p:PIXELS] var sum_${b}_${p} = vec4<Elem>();
    #[b:BLOCKS, p:PIXELS] var total_${b}_${p} = vec4<Elem>();
    let start = first_tap();
    // Whole channels, as many as make a run. No condition inside: software adapters compute both sides of one.
    let run = max(RUN / (params.tap_end - params.tap_begin), 1u);
    for (var begin = params.channel_begin; begin < params.channel_end; begin += run) {
        for (var c = begin; c < min(begin + run, params.channel_end); c++) {
            var tap = start;
            for (var t = params.tap_begin; t < params.tap_end; t++) {
                #[p:PIXELS] let x_${p} = Elem(slab[plane_${p} + tap.at]);
                #{b:BLOCKS
                let w_${b} = vec4<Elem>(filters[weight + ${b}u]);
                #[p:PIXELS] sum_${b}_${p} += w_${b} * x_${p};
                #}
                weight += BLOCKS;
                tap = next_tap(tap);
            }
            #[p:PIXELS] plane_${p} += params.in_plane;
        }
        #[b:BLOCKS, p:PIXELS] total_${b}_${p} += sum_${b}_${p};
        #[b:BLOCKS, p:PIXELS] sum_${b}_${p} = vec4<Elem>();
    }
    #[b:BLOCKS, p:PIXELS] sum_${b}_${p} += total_${b}_${p};
    #{p:PIXELS
    let column_${p} = first_column + ${p}u * workgroup_x;
    if column_${p} < params.columns {
        #{b:BLOCKS, j:4
        if block * (BLOCKS * 4u) + ${b}u * 4u + ${j}u < params.group_out {
            let at = output_at(group * params.group_out + block * (BLOCKS * 4u) + ${b}u * 4u + ${j}u, column_${p});
            #{a:ADDS
            if params.accumulate != 0u {
                sum_${b}_${p}[${j}] += output[at];
            }
            #}
            output[at] = sum_${b}_${p}[${j}];
        }
        #}
    }
    #}
}
