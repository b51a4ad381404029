//! The smaller thing to serve when memory is short: half the context, or a smaller model.
//!
//! Pure: what serves and what there is in, a [`LoadSpec`] and what it gives back out.

use crate::frames::LoadSpec;

/// What serves, in bytes where they matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// The model.
    pub name: String,
    /// Its KV pool, tokens.
    pub n_ctx: u32,
    /// Its KV pool, bytes.
    pub kv_bytes: u64,
    /// All that ending the worker gives back.
    pub worker_bytes: u64,
    /// Weights.
    pub weights_bytes: u64,
}

/// A model that could serve instead.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// How it would be loaded.
    pub load: LoadSpec,
    /// Size of its file, which is close to its weights.
    pub file_bytes: u64,
}

/// Least tokens of a pool that is still worth serving.
const N_CTX_MIN: u32 = 2048;
/// Half the context has to give back at least one part in so many of what the worker has, else another model
/// is worth its load.
const WORTH: u64 = 10;

/// Whether so much is worth a load.
pub(super) fn is_worth(serving: &Serving, gives_bytes: u64) -> bool {
    gives_bytes >= serving.worker_bytes / WORTH
}

/// The next smaller thing, and about how many bytes it gives back. `None`: nothing smaller is there.
pub(super) fn smaller(
    serving: &Serving,
    now: &LoadSpec,
    models: &[Candidate],
) -> Option<(LoadSpec, u64)> {
    let by_context = (serving.n_ctx / 2 >= N_CTX_MIN).then(|| {
        let n_ctx = serving.n_ctx / 2;
        let load = LoadSpec {
            n_ctx,
            n_ctx_seq: now.n_ctx_seq.min(n_ctx),
            ..now.clone()
        };
        (load, serving.kv_bytes / 2)
    });
    let is_smaller = |model: &&Candidate| {
        model.load.name != serving.name && model.file_bytes < serving.weights_bytes / 4 * 3
    };
    // The largest of the smaller ones: as good an answer as memory allows.
    let by_model = models
        .iter()
        .filter(is_smaller)
        .max_by_key(|model| model.file_bytes);
    let by_model =
        by_model.map(|model| (model.load.clone(), serving.weights_bytes - model.file_bytes));
    match (by_context, by_model) {
        (Some(context), Some(_)) if is_worth(serving, context.1) => Some(context),
        (context, model) => model.or(context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str) -> LoadSpec {
        LoadSpec {
            name: name.to_owned(),
            ..crate::governor::tests::spec()
        }
    }

    fn serving(kv_bytes: u64) -> Serving {
        Serving {
            name: "large".into(),
            n_ctx: 8192,
            kv_bytes,
            worker_bytes: 5000,
            weights_bytes: 4000,
        }
    }

    fn candidate(name: &str, file_bytes: u64) -> Candidate {
        Candidate {
            load: load(name),
            file_bytes,
        }
    }

    #[test]
    fn half_of_a_large_pool_is_given_back_before_the_model() {
        let (smaller, relief) =
            smaller(&serving(2000), &load("large"), &[candidate("small", 500)]).unwrap();
        assert_eq!(
            (smaller.name.as_str(), smaller.n_ctx, relief),
            ("large", 4096, 1000)
        );
    }

    #[test]
    fn where_the_pool_is_little_the_largest_smaller_model_serves() {
        let models = [
            candidate("large", 4000),
            candidate("middle", 2500),
            candidate("tiny", 100),
            candidate("same", 3900),
        ];
        let (smaller, relief) = smaller(&serving(100), &load("large"), &models).unwrap();
        assert_eq!((smaller.name.as_str(), relief), ("middle", 1500));
    }

    #[test]
    fn a_little_is_given_back_where_nothing_else_can_be() {
        let (smaller, relief) = smaller(&serving(100), &load("large"), &[]).unwrap();
        assert_eq!((smaller.n_ctx, relief), (4096, 50));
    }

    #[test]
    fn a_small_pool_of_the_smallest_model_gives_nothing_back() {
        let serving = Serving {
            n_ctx: 2048,
            ..serving(100)
        };
        assert_eq!(
            smaller(&serving, &load("large"), &[candidate("large", 4000)]),
            None
        );
    }
}
