//! Attention on the processor whose scores never lie in memory as a whole: a few queries at a time, of every head, by all
//! cores. The scores of a picture's 4096 places are 2 GB; those of 64 places stay in a core's own cache.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSliceMut as _;

use crate::elementwise::{is_here, to_softmax};

/// Queries that are taken at a time.
const QUERIES: usize = 64;

/// Softmax attention without a mask: `q` (batch, heads, length, width), `k` and `v` (batch, heads, other length, width),
/// to the shape of `q`; none where candle must do it: elsewhere, in other number formats.
///
/// What comes out lies in memory place by place, the heads of each one after another, so that merging them copies nothing.
pub(crate) fn by_pieces(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
    if ![q, k, v].into_iter().all(is_here) || [q, k, v].into_iter().any(|x| x.elem_count() == 0) {
        return Ok(None);
    }
    let in_rows = |x: &Tensor| if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() };
    let made = in_rows(q)?.apply_op3_no_bwd(&in_rows(k)?, &in_rows(v)?, &Attention)?;
    made.transpose(1, 2).map(Some)
}

struct Attention;

/// The matrices of a tensor (batch, heads, rows, columns) whose rows lie in one piece each.
struct Heads<'a> {
    numbers: &'a [f32],
    dims: [usize; 4],
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (CpuStorage::F32(numbers), &[batch, heads, rows, columns], &[a, b, c, 1]) =
            (storage, layout.dims(), layout.stride())
        else {
            bail!("attention is of four dimensions in single precision, rows in one piece")
        };
        let numbers = &numbers[layout.start_offset()..];
        Ok(Self { numbers, dims: [batch, heads, rows, columns], strides: [a, b, c] })
    }

    /// Some rows of one head.
    fn rows(&self, batch: usize, head: usize, first: usize, rows: usize) -> MatRef<'a, f32> {
        let [a, b, c] = self.strides;
        let from = &self.numbers[batch * a + head * b + first * c..];
        MatRef::from_row_major_slice_with_stride(from, rows, self.dims[3], c)
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_lies: &Layout,
        k: &CpuStorage,
        k_lies: &Layout,
        v: &CpuStorage,
        v_lies: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [q, k, v] = [Heads::of(q, q_lies)?, Heads::of(k, k_lies)?, Heads::of(v, v_lies)?];
        let ([batch, heads, length, width], [.., others, wide]) = (q.dims, v.dims);
        if k.dims != [batch, heads, others, width] || v.dims != [batch, heads, others, wide] || wide != width {
            bail!("queries {:?} do not fit keys {:?} and values {:?}", q.dims, k.dims, v.dims)
        }
        let place = heads * width;
        let mut made = vec![0.0_f32; batch * length * place];
        for (text, made) in made.chunks_exact_mut(length * place).enumerate() {
            let pieces = made.par_chunks_mut(QUERIES * place).enumerate();
            pieces.for_each_init(Vec::new, |scores: &mut Vec<f32>, (piece, to)| {
                let rows = to.len() / place;
                scores.resize(rows * others, 0.0);
                for head in 0..heads {
                    let queries = q.rows(text, head, piece * QUERIES, rows);
                    let keys = k.rows(text, head, 0, others).transpose();
                    let into = MatMut::from_row_major_slice_mut(scores, rows, others);
                    matmul(into, Accum::Replace, queries, keys, 1.0 / (width as f32).sqrt(), Par::Seq);
                    scores.chunks_exact_mut(others).for_each(to_softmax);
                    let weights = MatRef::from_row_major_slice(scores, rows, others);
                    // Row by row, said as columns: faer 0.24's own word for it exchanges the two steps.
                    let to = &mut to[head * width..];
                    let into = MatMut::from_column_major_slice_with_stride_mut(to, width, rows, place).transpose_mut();
                    matmul(into, Accum::Replace, weights, v.rows(text, head, 0, others), 1.0, Par::Seq);
                }
            });
        }
        Ok((CpuStorage::F32(made), Shape::from((batch, length, heads, width))))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};

    use super::*;

    fn numbers(shape: &[usize], seed: usize) -> Tensor {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f32> = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 200.0 - 5.0).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn it_is_attention_however_its_parts_lie() {
        for (length, others) in [(1, 1), (64, 5), (130, 77)] {
            let q = numbers(&[2, length, 3, 4], 1).transpose(1, 2).unwrap();
            let k = numbers(&[2, 3, 4, others], 2).t().unwrap();
            // One head of values for all.
            let v = numbers(&[2, 1, others, 4], 3).expand((2, 3, others, 4)).unwrap();
            let exact = |x: &Tensor| x.to_dtype(DType::F64).unwrap().contiguous().unwrap();
            let scores = (exact(&q).matmul(&exact(&k).t().unwrap().contiguous().unwrap()).unwrap() / 2.0).unwrap();
            let right = candle_nn::ops::softmax(&scores, D::Minus1).unwrap().matmul(&exact(&v)).unwrap();
            let found = by_pieces(&q, &k, &v).unwrap().unwrap();
            assert_eq!(found.dims(), [2, 3, length, 4]);
            assert!(found.transpose(1, 2).unwrap().is_contiguous(), "merging heads copies nothing");
            let apart = (exact(&found) - right).unwrap().abs().unwrap().max_all().unwrap();
            assert!(apart.to_scalar::<f64>().unwrap() < 1e-5, "{length} {others}");
        }
        let exact = numbers(&[1, 1, 2, 2], 4).to_dtype(DType::F64).unwrap();
        assert!(by_pieces(&exact, &exact, &exact).unwrap().is_none(), "by candle");
        let (one, other) = (numbers(&[1, 1, 2, 4], 5), numbers(&[1, 1, 3, 2], 6));
        assert!(by_pieces(&one, &other, &other).is_err());
    }
}
