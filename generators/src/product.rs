//! Matrix products. On the processor, in single precision, they are faer's: on processors with wide registers a third
//! to a half faster than those of candle (`docs/performance.md` of larder); everywhere else they are candle's.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSliceMut as _;

use crate::elementwise::{PIECE, is_here};

/// What is done to every number of a product.
#[derive(Clone, Copy)]
pub(crate) struct Then {
    /// On the processor, to numbers that are nobody else's.
    pub(crate) here: fn(&mut [f32]),
    /// By candle.
    pub(crate) elsewhere: fn(&Tensor) -> Result<Tensor>,
}

/// `a` (m, k) times `b` (k, n), plus `bias` (n) in every row, and `then` something done to each number: (m, n).
///
/// In one go: each of them by itself would read and write the whole product, in memory that is new to the system.
pub(crate) fn product_then(a: &Tensor, b: &Tensor, bias: Option<&Tensor>, then: Option<Then>) -> Result<Tensor> {
    let all_here = [Some(a), Some(b), bias].into_iter().flatten().all(|x| is_here(x) && x.elem_count() > 0);
    if !all_here || bias.is_some_and(|bias| !bias.is_contiguous()) {
        let made = product(a, b)?;
        let made = bias.map_or(Ok(made.clone()), |bias| made.broadcast_add(bias))?;
        return then.map_or(Ok(made.clone()), |then| (then.elsewhere)(&made));
    }
    let (a, b, op) = (in_order(a)?, in_order(b)?, Product(then.map(|then| then.here)));
    match bias {
        Some(bias) => a.apply_op3_no_bwd(&b, bias, &op),
        None => a.apply_op2_no_bwd(&b, &op),
    }
}

fn in_order(x: &Tensor) -> Result<Tensor> {
    if Order::of(x.layout()).is_some() { Ok(x.clone()) } else { x.contiguous() }
}

/// `a` (…, m, k) times `b` (…, k, n): (…, m, n). What comes before the last two dimensions is the same in both.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !is_here(a) || !is_here(b) || a.elem_count() == 0 || b.elem_count() == 0 {
        // Some of candle's kernels take only what lies in one piece.
        return a.contiguous()?.matmul(&b.contiguous()?);
    }
    in_order(a)?.apply_op2_no_bwd(&in_order(b)?, &Product(None))
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

/// With what is done to the product afterwards.
struct Product(Option<fn(&mut [f32])>);

type Lying<'a> = (&'a CpuStorage, &'a Layout);

impl Product {
    fn made(
        &self,
        (a, a_lies): Lying<'_>,
        (b, b_lies): Lying<'_>,
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let [(many, [m, k], a, a_order), (many_b, [k_b, n], b, b_order)] = [matrices(a, a_lies)?, matrices(b, b_lies)?];
        if k != k_b || many != many_b || bias.is_some_and(|bias| bias.len() != n) {
            bail!("the product of {:?} and {:?} does not exist", a_lies.dims(), b_lies.dims());
        }
        let mut made = vec![0.0_f32; many * m * n];
        let by_rows = n * PIECE.div_ceil(n.max(1));
        if let Some(bias) = bias {
            made.par_chunks_mut(by_rows)
                .for_each(|rows| rows.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias)));
        }
        let start = if bias.is_some() { Accum::Add } else { Accum::Replace };
        let one = |i: usize, to: &mut [f32], par: Par| {
            let a = a_order.matrix(&a[i * m * k..(i + 1) * m * k], m, k);
            let b = b_order.matrix(&b[i * k * n..(i + 1) * k * n], k, n);
            matmul(MatMut::from_row_major_slice_mut(to, m, n), start, a, b, 1.0, par);
        };
        if many >= rayon::current_num_threads() {
            made.par_chunks_exact_mut(m * n).enumerate().for_each(|(i, to)| one(i, to, Par::Seq));
        } else {
            made.chunks_exact_mut(m * n).enumerate().for_each(|(i, to)| one(i, to, Par::rayon(0)));
        }
        if let Some(then) = self.0 {
            made.par_chunks_mut(by_rows).for_each(then);
        }
        let mut shape = a_lies.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        Ok((CpuStorage::F32(made), Shape::from(shape)))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, a: &CpuStorage, a_lies: &Layout, b: &CpuStorage, b_lies: &Layout) -> Result<(CpuStorage, Shape)> {
        self.made((a, a_lies), (b, b_lies), None)
    }
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "product and bias"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_lies: &Layout,
        b: &CpuStorage,
        b_lies: &Layout,
        bias: &CpuStorage,
        bias_lies: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(numbers), Some((start, end))) = (bias, bias_lies.contiguous_offsets()) else {
            bail!("a bias is in single precision and lies in one piece")
        };
        self.made((a, a_lies), (b, b_lies), Some(&numbers[start..end]))
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
    use candle_core::{DType, Device};

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
    fn with_a_bias_and_what_follows_it_is_one_after_the_other() {
        fn halve(numbers: &mut [f32]) {
            numbers.iter_mut().for_each(|number| *number /= 2.0);
        }
        let then = Then { here: halve, elsewhere: |x| x / 2.0 };
        for (m, k, n) in [(1, 1, 1), (5, 3, 7), (300, 20, 130)] {
            let (a, b, bias) = (numbers(&[m, k], 1), numbers(&[n, k], 2).t().unwrap(), numbers(&[n], 3));
            let whole = product(&a, &b).unwrap();
            let moved = whole.broadcast_add(&bias).unwrap();
            let cases = [
                (product_then(&a, &b, None, None), whole.clone()),
                (product_then(&a, &b, None, Some(then)), (whole / 2.0).unwrap()),
                (product_then(&a, &b, Some(&bias), None), moved.clone()),
                (product_then(&a, &b, Some(&bias), Some(then)), (moved / 2.0).unwrap()),
            ];
            for (found, right) in cases {
                let apart = (found.unwrap() - right).unwrap().abs().unwrap().max_all().unwrap();
                assert!(apart.to_scalar::<f32>().unwrap() < 1e-5, "{m} {k} {n}");
            }
            let exact = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
            assert!(product_then(&exact(&a), &exact(&b), Some(&exact(&bias)), Some(then)).is_ok(), "by candle");
        }
        assert!(product_then(&numbers(&[2, 3], 1), &numbers(&[3, 4], 2), Some(&numbers(&[5], 3)), None).is_err());
    }

    #[test]
    fn factors_that_do_not_fit_are_refused() {
        assert!(product(&numbers(&[3, 4], 1), &numbers(&[5, 3], 2)).is_err());
        assert!(product(&numbers(&[2, 3, 4], 1), &numbers(&[3, 4, 3], 2)).is_err());
        assert!(product(&numbers(&[0, 4], 1), &numbers(&[4, 3], 2)).unwrap().dims() == [0, 3]);
    }
}
