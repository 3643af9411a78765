// Winograd's F(2 x 2, 3 x 3), first pass: each window of 4 x 4 elements that makes 2 x 2 outputs, transformed to
// B^T d B. A thread transforms the window of one tile of outputs in one channel. The windows of neighbouring tiles share
// two rows and columns; what lies beyond the slab counts as zero, which only outputs that do not exist would see.
//
// transformed: [16][channels][tiles of all images], the input of a 1 x 1 convolution in 16 times as many groups

@group(0) @binding(1) var<storage, read> slab: array<Elem>;
@group(0) @binding(2) var<storage, read_write> transformed: array<Elem>;

override workgroup_x: u32 = 64u;

@compute @workgroup_size(workgroup_x)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let linear = params.first_workgroup + workgroup.y * params.grid_x + workgroup.x;
    let tiles_w = (params.out_w + 1u) / 2u;
    let tiles_plane = (params.out_h + 1u) / 2u * tiles_w;
    let tiles = params.columns / params.out_plane * tiles_plane;
    let blocks = (tiles + workgroup_x - 1u) / workgroup_x;
    let tile = linear % blocks * workgroup_x + local;
    let channel = linear / blocks;
    if linear >= params.end_workgroup || tile >= tiles {
        return;
    }
    let image = tile / tiles_plane;
    let y = tile % tiles_plane / tiles_w * 2u;
    let x = tile % tiles_w * 2u;
    let first = (image * params.in_channels + channel) * params.in_plane + y * params.in_row + x;
    let rows = params.in_plane / params.in_row - y;
    let columns = params.in_row - x;
    // Three rows and columns are always there.
    #{r:3
    #[c:3] let d_${r}_${c} = slab[first + ${r}u * params.in_row + ${c}u];
    var d_${r}_3 = Elem(0);
    if columns > 3u {
        d_${r}_3 = slab[first + ${r}u * params.in_row + 3u];
    }
    #}
    #[c:4] var d_3_${c} = Elem(0);
    if rows > 3u {
        #[c:3] d_3_${c} = slab[first + 3u * params.in_row + ${c}u];
        if columns > 3u {
            d_3_3 = slab[first + 3u * params.in_row + 3u];
        }
    }
    #{c:4
    let t_0_${c} = d_0_${c} - d_2_${c};
    let t_1_${c} = d_1_${c} + d_2_${c};
    let t_2_${c} = d_2_${c} - d_1_${c};
    let t_3_${c} = d_1_${c} - d_3_${c};
    #}
    let step = params.in_channels * tiles;
    let at = channel * tiles + tile;
    #{r:4
    transformed[at + ${r}u * 4u * step] = t_${r}_0 - t_${r}_2;
    transformed[at + (${r}u * 4u + 1u) * step] = t_${r}_1 + t_${r}_2;
    transformed[at + (${r}u * 4u + 2u) * step] = t_${r}_2 - t_${r}_1;
    transformed[at + (${r}u * 4u + 3u) * step] = t_${r}_1 - t_${r}_3;
    #}
}
