// One thread per output element: the readable twin of the other kernels, and the baseline they are measured
// against. Also the kernel of choice where a group has too few output channels to share a pixel among.
//
// filters: [O, C/G, taps]

@group(0) @binding(1) var<storage, read> slab: array<Stored>;
@group(0) @binding(2) var<storage, read> filters: array<Stored>;
@group(0) @binding(3) var<storage, read_write> output: array<Elem>;

override workgroup_x: u32 = 64u;

@compute @workgroup_size(workgroup_x)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    let column = linear % params.column_blocks * workgroup_x + local;
    if linear >= params.end_workgroup || column >= params.columns {
        return;
    }
    let channel = linear / params.column_blocks;
    let first_channel = channel / params.group_out * params.group_in;
    var plane = window(column) + (first_channel + params.channel_begin) * params.in_plane;
    var weight = (channel * params.group_in + params.channel_begin) * params.taps + params.tap_begin;
    var sum = Elem(0);
    var total = Elem(0);
    let start = first_tap();
    // Whole channels, as many as make a run. No condition inside: software adapters compute both sides of one.
    let run = max(RUN / (params.tap_end - params.tap_begin), 1u);
    for (var begin = params.channel_begin; begin < params.channel_end; begin += run) {
        for (var c = begin; c < min(begin + run, params.channel_end); c++) {
            var tap = start;
            for (var t = params.tap_begin; t < params.tap_end; t++) {
                sum = fma(Elem(filters[weight]), Elem(slab[plane + tap.at]), sum);
                weight++;
                tap = next_tap(tap);
            }
            plane += params.in_plane;
        }
        total += sum;
        sum = Elem(0);
    }
    sum += total;
    let at = output_at(channel, column);
    #{a:ADDS
    if params.accumulate != 0u {
        sum += output[at];
    }
    #}
    output[at] = sum;
}
