// Second pass of a convolution whose reduction was split: the sum of the splits' sums, always in the same order, so
// that a result does not depend on which workgroup was done first.
//
// sums: [splits][output]

@group(0) @binding(1) var<storage, read> sums: array<Elem>;
@group(0) @binding(2) var<storage, read_write> output: array<Elem>;

override workgroup_x: u32 = 64u;

@compute @workgroup_size(workgroup_x)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    let at = linear * workgroup_x + local;
    if linear >= params.end_workgroup || at >= params.outputs {
        return;
    }
    var sum = Elem(0);
    for (var split = 0u; split < params.splits; split++) {
        sum += sums[split * params.outputs + at];
    }
    output[at] = sum;
}
