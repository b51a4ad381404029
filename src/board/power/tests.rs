use super::*;

fn table() -> Table {
    let text = "< POWER_MODEL ID=0 NAME=FAST >\nGPU MAX_FREQ -1\n\
                < POWER_MODEL ID=3 NAME=SLOW >\nGPU MAX_FREQ 408000000\n\
                < PM_CONFIG DEFAULT=3 >\n";
    nvpmodel::parse(text.as_bytes()).unwrap()
}

fn name(status: Result<Option<u32>, ReadError>, answer: Option<(&str, u32)>) -> (String, NamedBy) {
    let answer = answer.map(|(name, id)| Answer {
        name: name.into(),
        id: Some(id),
    });
    let (mode, by) = named(&table(), status, answer.as_ref(), &mut Faults::default());
    (mode.map_or_else(String::new, |mode| mode.name), by)
}

#[test]
fn status_comes_before_the_tool_and_the_tool_before_the_default() {
    let bad = || Err(ReadError::missing(nvpmodel::STATUS));
    assert_eq!(
        name(Ok(Some(0)), Some(("SLOW", 3))),
        ("FAST".into(), NamedBy::Status)
    );
    assert_eq!(
        name(bad(), Some(("SLOW", 3))),
        ("SLOW".into(), NamedBy::Query)
    );
    assert_eq!(
        name(bad(), Some(("OTHER", 9))),
        ("OTHER".into(), NamedBy::Query)
    );
    assert_eq!(name(Ok(None), None), ("SLOW".into(), NamedBy::Default));
    // A status that is there and wrong says that somebody set something: not the default.
    assert_eq!(name(bad(), None), (String::new(), NamedBy::Nobody));
    assert_eq!(name(Ok(Some(7)), None), (String::new(), NamedBy::Nobody));
}

#[test]
fn clocks_in_force_win_and_say_whose_they_are() {
    let limits = Caps {
        gpu_hz: Some(1_173_000_000),
        ..Caps::default()
    };
    let of = |live_hz| {
        let mode = table().get(3).cloned();
        let live = Caps {
            gpu_hz: Some(live_hz),
            ..Caps::default()
        };
        present(
            &table(),
            mode,
            NamedBy::Status,
            live,
            limits,
            Faults::default(),
        )
    };
    let same = of(408_000_000);
    assert_eq!((same.differences.len(), &same.looks_like), (0, &None));
    let other = of(1_173_000_000);
    assert_eq!(other.caps.gpu_hz, Some(1_173_000_000));
    assert_eq!(other.effective_mode().unwrap().name, "FAST");
    let heat = of(306_000_000);
    assert_eq!((heat.differences.len(), &heat.looks_like), (1, &None));
    assert_eq!(heat.effective_mode().unwrap().name, "SLOW");
}

#[test]
fn a_memory_clock_without_cap_is_zero_or_absurd() {
    assert_eq!(parse_emc(b"0\n"), Ok(None));
    assert_eq!(parse_emc(b"9223372036854775807\n"), Ok(None));
    assert_eq!(parse_emc(b"2133000000\n"), Ok(Some(2_133_000_000)));
    assert!(parse_emc(b"fast\n").is_err());
}
