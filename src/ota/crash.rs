//! Places at which a test has this process die, as a power cut would end it: at once, with nothing said or flushed.
//!
//! The product does nothing here. [`ENV`] in the process's own environment arms one place; only who starts the
//! daemon can set that, nothing from a network, a disk or a stick reaches it, and all that it does is to end the
//! process, which whoever starts a process can do anyway. What is left then is what updates have to survive in any
//! case, and what the tests that set it are about.
//!
//! It is in the product, rather than compiled out of it, so that the very program that is shipped is the one that is
//! killed in the tests.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tracing::error;

/// Names the place: `trial:loaded`, or `piece:synced#3` for the third time that it is reached.
pub const ENV: &str = "ORINOCO_TEST_UPDATE_DIES_AT";

struct Armed {
    place: String,
    left: AtomicU32,
}

/// A place was reached. Where it is the one, the process ends here.
pub fn point(place: &str) {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| std::env::var(ENV).ok().map(|text| parse(&text)));
    if let Some(armed) = armed
        && armed.place == place
        && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        error!(place, "this process is told to die here by {ENV}");
        std::process::abort();
    }
}

fn parse(text: &str) -> Armed {
    let counted = text
        .rsplit_once('#')
        .and_then(|(place, count)| Some((place, count.parse().ok().filter(|n| *n > 0)?)));
    let (place, times) = counted.unwrap_or((text, 1));
    Armed {
        place: place.to_owned(),
        left: AtomicU32::new(times),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_meant_the_first_time_or_as_often_as_is_said() {
        let armed = |text| {
            let armed = parse(text);
            (armed.place, armed.left.into_inner())
        };
        assert_eq!(
            armed("state:staged:after"),
            ("state:staged:after".into(), 1)
        );
        assert_eq!(armed("piece:synced#3"), ("piece:synced".into(), 3));
        assert_eq!(armed("piece#x"), ("piece#x".into(), 1));
        assert_eq!(armed("piece#0"), ("piece#0".into(), 1));
    }
}
