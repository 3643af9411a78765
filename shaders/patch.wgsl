// The text of `single` where a plan knows the window: ROWS x PIXELS adjacent outputs of one channel a thread, KH x KW
// taps and their strides unrolled, so that an element meets all taps that see it after one load. Software adapters
// need it most: a load or a division costs a loop over the lanes there, as much as some twenty vector instructions,
// whether it fetches one element a lane or four. So rows are loaded in aligned quads and shifted into place.
//
// Two axes, no dilation. The patches of all channels and images form one axis of threads: no lane is left idle because
// a plane has few patches.
//
// filters: [O, C/G][taps, rounded up to quads], zero where there is no such tap

alias Quad = vec4<Stored>;

// Rounded up to quads.
@group(0) @binding(1) var<storage, read> slab: array<Quad>;
@group(0) @binding(2) var<storage, read> filters: array<Quad>;
@group(0) @binding(3) var<storage, read_write> output: array<Elem>;

override workgroup_x: u32 = 64u;

@compute @workgroup_size(workgroup_x)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    if linear >= params.end_workgroup {
        return;
    }
    let patch_index = linear * workgroup_x + local;
    let patches_x = (params.out_w + PIXELS - 1u) / PIXELS;
    let patches_y = (params.out_h + ROWS - 1u) / ROWS;
    let row = patch_index / patches_x;
    let plane = row / patches_y;
    let x = (patch_index - row * patches_x) * PIXELS;
    let y = (row - plane * patches_y) * ROWS;
    // Planes count the output channels of all images, and those past the last write nothing. What a patch reads past
    // the edge of the output reaches only sums that are not written, so such an index may be any inside the slab.
    let last = arrayLength(&slab) - 1u;
    let channels = params.channel_end - params.channel_begin;
    var at = (plane / params.group_out * params.group_in + params.channel_begin) * params.in_plane
        + y * STRIDE_Y * params.in_row + x * STRIDE_X;
    var weight = (plane % params.out_channels * params.group_in + params.channel_begin) * TAP_QUADS;
    #[r:ROWS, p:PIXELS] var sum_${r}_${p} = Elem(0);
    #[l:LONG, r:ROWS, p:PIXELS] var total_${r}_${p} = Elem(0);
    #[l:LOOPS] for (var channel = 0u; channel < channels; channel++) {
    #{i:IN_ROWS
    let at_${i} = at + ${i}u * params.in_row;
    let two_${i} = (at_${i} & 2u) != 0u;
    let one_${i} = (at_${i} & 1u) != 0u;
    #{v:QUADS
    let quad_${i}_${v} = vec4<Elem>(slab[min(at_${i} / 4u + ${v}u, last)]);
    #[c:4] let q_${i}_${v*4+c} = quad_${i}_${v}[${c}u];
    #}
    #[e:ELEMS_1] let m_${i}_${e} = select(q_${i}_${e}, q_${i}_${e+2}, two_${i});
    #[e:ELEMS] let x_${i}_${e} = select(m_${i}_${e}, m_${i}_${e+1}, one_${i});
    #}
    #{v:TAP_QUADS
    let weights_${v} = vec4<Elem>(filters[weight + ${v}u]);
    #[c:4] let w_${v*4+c} = weights_${v}[${c}u];
    #}
    #[r:ROWS, ky:KH, p:PIXELS, kx:KW] sum_${r}_${p} = fma(w_${ky*KW+kx}, x_${r*STRIDE_Y+ky}_${p*STRIDE_X+kx}, sum_${r}_${p});
    #{l:LONG
    if channel % RUN_CHANNELS == RUN_CHANNELS - 1u {
        #[r:ROWS, p:PIXELS] total_${r}_${p} += sum_${r}_${p};
        #[r:ROWS, p:PIXELS] sum_${r}_${p} = Elem(0);
    }
    #}
    #{l:LOOPS
    at += params.in_plane;
    weight += TAP_QUADS;
    }
    #}
    #[l:LONG, r:ROWS, p:PIXELS] sum_${r}_${p} += total_${r}_${p};
    let first = plane * params.out_plane + y * params.out_w + x;
    let inside = plane * params.out_plane < params.outputs;
    #{r:ROWS
    let inside_${r} = inside & (y + ${r}u < params.out_h);
    #{p:PIXELS
    if inside_${r} & (x + ${p}u < params.out_w) {
        let at = first + ${r}u * params.out_w + ${p}u;
        #{a:ADDS
        if params.accumulate != 0u {
            sum_${r}_${p} += output[at];
        }
        #}
        output[at] = sum_${r}_${p};
    }
    #}
    #}
}
