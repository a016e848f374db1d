//! Matrix products. On the processor, in single precision, they are faer's: on processors with wide registers a third
//! to a half faster than those of candle (`docs/performance.md` of larder); everywhere else they are candle's.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSliceMut as _;

/// `a` (…, m, k) times `b` (…, k, n): (…, m, n). What comes before the last two dimensions is the same in both.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let is_here = |x: &Tensor| x.device().is_cpu() && x.dtype() == DType::F32;
    if !is_here(a) || !is_here(b) || a.elem_count() == 0 || b.elem_count() == 0 {
        // Some of candle's kernels take only what lies in one piece.
        return a.contiguous()?.matmul(&b.contiguous()?);
    }
    let in_order = |x: &Tensor| if Order::of(x.layout()).is_some() { Ok(x.clone()) } else { x.contiguous() };
    in_order(a)?.apply_op2_no_bwd(&in_order(b)?, &Product)
}

/// How the matrices of a tensor lie in memory, which follow each other without gaps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    RowByRow,
    ColumnByColumn,
}

impl Order {
    fn of(layout: &Layout) -> Option<Self> {
        if layout.is_contiguous() {
            return Some(Order::RowByRow);
        }
        let rank = layout.dims().len();
        let turned = layout.transpose(rank.checked_sub(2)?, rank - 1).ok()?;
        turned.is_contiguous().then_some(Order::ColumnByColumn)
    }

    fn matrix(self, numbers: &[f32], rows: usize, columns: usize) -> MatRef<'_, f32> {
        match self {
            Order::RowByRow => MatRef::from_row_major_slice(numbers, rows, columns),
            Order::ColumnByColumn => MatRef::from_column_major_slice(numbers, rows, columns),
        }
    }
}

struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, a: &CpuStorage, a_lies: &Layout, b: &CpuStorage, b_lies: &Layout) -> Result<(CpuStorage, Shape)> {
        let [(many, [m, k], a, a_order), (many_b, [k_b, n], b, b_order)] = [matrices(a, a_lies)?, matrices(b, b_lies)?];
        if k != k_b || many != many_b {
            bail!("the product of {:?} and {:?} does not exist", a_lies.dims(), b_lies.dims());
        }
        let mut made = vec![0.0_f32; many * m * n];
        let one = |i: usize, to: &mut [f32], par: Par| {
            let a = a_order.matrix(&a[i * m * k..(i + 1) * m * k], m, k);
            let b = b_order.matrix(&b[i * k * n..(i + 1) * k * n], k, n);
            matmul(MatMut::from_row_major_slice_mut(to, m, n), Accum::Replace, a, b, 1.0, par);
        };
        if many >= rayon::current_num_threads() {
            made.par_chunks_exact_mut(m * n).enumerate().for_each(|(i, to)| one(i, to, Par::Seq));
        } else {
            made.chunks_exact_mut(m * n).enumerate().for_each(|(i, to)| one(i, to, Par::rayon(0)));
        }
        let mut shape = a_lies.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        Ok((CpuStorage::F32(made), Shape::from(shape)))
    }
}

/// How many matrices there are, their rows and columns, their numbers, and how each of them lies.
fn matrices<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<(usize, [usize; 2], &'a [f32], Order)> {
    let (CpuStorage::F32(numbers), Some(order), [before @ .., rows, columns]) =
        (storage, Order::of(layout), layout.dims())
    else {
        bail!("products are of matrices in single precision that lie in order")
    };
    let many: usize = before.iter().product();
    let start = layout.start_offset();
    Ok((many, [*rows, *columns], &numbers[start..start + many * rows * columns], order))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbers(shape: &[usize], seed: usize) -> Tensor {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f32> =
            (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }

    fn agrees(a: &Tensor, b: &Tensor) {
        let exact = |x: &Tensor| x.to_dtype(DType::F64).unwrap().contiguous().unwrap();
        let right = exact(a).matmul(&exact(b)).unwrap();
        let found = product(a, b).unwrap();
        assert_eq!(found.dims(), right.dims());
        let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        let apart = (exact(&found) - &right).unwrap();
        assert!(largest(&apart) <= 2e-6 * largest(&right).max(1.0), "{:?} {:?}", a.dims(), b.dims());
    }

    #[test]
    fn it_is_the_product_however_its_factors_lie() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (17, 64, 33), (129, 31, 65), (1, 300, 2)] {
            for before in [&[][..], &[1], &[2], &[2, 3]] {
                let shape = |last: [usize; 2]| [before, &last].concat();
                let (a, b) = (numbers(&shape([m, k]), 1), numbers(&shape([k, n]), 2));
                let (turned_a, turned_b) =
                    (numbers(&shape([k, m]), 3).t().unwrap(), numbers(&shape([n, k]), 4).t().unwrap());
                for a in [&a, &turned_a] {
                    for b in [&b, &turned_b] {
                        agrees(a, b);
                    }
                }
            }
        }
        // Parts of larger tensors: offset, and with gaps.
        let (whole, other) = (numbers(&[4, 6, 9], 5), numbers(&[4, 9, 8], 6));
        agrees(&whole.narrow(0, 1, 2).unwrap(), &other.narrow(0, 2, 2).unwrap());
        agrees(&whole.narrow(2, 2, 5).unwrap(), &other.narrow(1, 3, 5).unwrap());
    }

    #[test]
    fn factors_that_do_not_fit_are_refused() {
        assert!(product(&numbers(&[3, 4], 1), &numbers(&[5, 3], 2)).is_err());
        assert!(product(&numbers(&[2, 3, 4], 1), &numbers(&[3, 4, 3], 2)).is_err());
        assert!(product(&numbers(&[0, 4], 1), &numbers(&[4, 3], 2)).unwrap().dims() == [0, 3]);
    }
}
