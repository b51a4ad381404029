//! The table of tensors: names, shapes, sizes and places, with checked arithmetic throughout.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use super::reader::Bounded;
use super::{Reason, ascii, limits};

/// What the table says in sum.
pub(super) struct Tensors {
    pub(super) n_params: u64,
    /// From the start of the data to the end of the last tensor.
    pub(super) data_bytes: u64,
    /// Name of the type that holds most bytes.
    pub(super) most_used_type: &'static str,
}

impl Tensors {
    pub(super) fn read(
        bytes: &mut Bounded<impl Read>,
        n_tensors: u64,
        alignment: u64,
    ) -> Result<Self, Reason> {
        // About a MiB for as many as there may be; growing would hash all of them again.
        let mut names = HashSet::with_capacity(n_tensors as usize);
        let mut bytes_by_type = BTreeMap::<&str, u64>::new();
        let mut n_params = 0_u64;
        let mut data_bytes = 0_u64;
        for _ in 0..n_tensors {
            let name = bytes.string("a tensor's name", limits::TENSOR_NAME_BYTES_MAX)?;
            let name = ascii("the tensor name", name)?;
            let tensor = Tensor::read(bytes, &name)?;

            // llama.cpp wants the tensors back to back, each at the next multiple of the alignment.
            let too_large = || Reason::TooLarge { name: name.clone() };
            let expected = data_bytes
                .checked_next_multiple_of(alignment)
                .ok_or_else(too_large)?;
            let found = bytes.u64()?;
            if found != expected {
                return Err(Reason::Offset {
                    name,
                    found,
                    expected,
                });
            }
            // Half of the range, as ggml counts in signed numbers.
            data_bytes = expected
                .checked_add(tensor.size_bytes)
                .filter(|end| *end <= i64::MAX as u64)
                .ok_or_else(too_large)?;
            n_params = n_params
                .checked_add(tensor.n_elements)
                .ok_or_else(too_large)?;
            *bytes_by_type.entry(tensor.type_name).or_default() += tensor.size_bytes;
            if let Some(name) = names.replace(name.into_boxed_str()) {
                return Err(Reason::DuplicateTensor { name: name.into() });
            }
        }
        let most_used = bytes_by_type.into_iter().max_by_key(|(_, size)| *size);
        Ok(Self {
            n_params,
            data_bytes,
            most_used_type: most_used.map_or("", |(name, _)| name),
        })
    }
}

struct Tensor {
    type_name: &'static str,
    n_elements: u64,
    size_bytes: u64,
}

impl Tensor {
    fn read(bytes: &mut Bounded<impl Read>, name: &str) -> Result<Self, Reason> {
        let n_dims = bytes.u32()?;
        if !(1..=4).contains(&n_dims) {
            return Err(Reason::Dimensions {
                name: name.to_owned(),
                found: n_dims,
            });
        }
        let too_large = || Reason::TooLarge {
            name: name.to_owned(),
        };
        let mut row = 0;
        let mut n_elements = 1_u64;
        for dim in 0..n_dims {
            let length = bytes.u64()?;
            if length == 0 {
                return Err(Reason::ZeroDimension {
                    name: name.to_owned(),
                });
            }
            if dim == 0 {
                row = length;
            }
            n_elements = n_elements
                .checked_mul(length)
                .filter(|n| *n <= i64::MAX as u64)
                .ok_or_else(too_large)?;
        }
        let number = bytes.u32()?;
        let Some((type_name, block, block_bytes)) = limits::tensor_type(number) else {
            return Err(Reason::TensorType {
                name: name.to_owned(),
                found: number,
            });
        };
        if row % block != 0 {
            return Err(Reason::Blocks {
                name: name.to_owned(),
                row,
                block,
                quant: type_name,
            });
        }
        let size_bytes = (n_elements / block)
            .checked_mul(block_bytes)
            .ok_or_else(too_large)?;
        Ok(Self {
            type_name,
            n_elements,
            size_bytes,
        })
    }
}
