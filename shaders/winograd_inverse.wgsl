// Winograd's F(2 x 2, 3 x 3), last pass: the 16 products of each tile, to its 2 x 2 outputs A^T m A. A thread computes the
// tile of one channel; of outputs past the last row and column there is nothing to write.
//
// products: [16][channels][tiles of all images]

@group(0) @binding(1) var<storage, read> products: array<Elem>;
@group(0) @binding(2) var<storage, read_write> output: array<Elem>;

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
    let step = params.out_channels * tiles;
    let first = channel * tiles + tile;
    #[r:4, c:4] let m_${r}_${c} = products[first + (${r}u * 4u + ${c}u) * step];
    #{c:4
    let s_0_${c} = m_0_${c} + m_1_${c} + m_2_${c};
    let s_1_${c} = m_1_${c} - m_2_${c} - m_3_${c};
    #}
    let y = tile % tiles_plane / tiles_w * 2u;
    let x = tile % tiles_w * 2u;
    let at = (tile / tiles_plane * params.out_channels + channel) * params.out_plane + y * params.out_w + x;
    #{r:2
    if y + ${r}u < params.out_h {
        output[at + ${r}u * params.out_w] = s_${r}_0 + s_${r}_1 + s_${r}_2;
        if x + 1u < params.out_w {
            output[at + ${r}u * params.out_w + 1u] = s_${r}_1 - s_${r}_2 - s_${r}_3;
        }
    }
    #}
}
