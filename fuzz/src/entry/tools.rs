//! The text of a model that may call tools: a stranger may have had it written.

use orinoco::frames::ToolSyntax;
use orinoco::wire::tools::{Answer, Parser, Part};

const SYNTAXES: [ToolSyntax; 4] = [
    ToolSyntax::Hermes,
    ToolSyntax::Llama3,
    ToolSyntax::Mistral,
    ToolSyntax::Generic,
];

/// Reads the text whole and in pieces, in each syntax: the first byte says how large they are.
pub fn check(data: &[u8]) {
    let Some((first, text)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let size = usize::from(first % 13) + 1;
    for syntax in SYNTAXES {
        let parser = Parser::new(syntax, ["lamp", "read"].map(str::to_owned));
        let whole = Answer::of(parser.clone(), &text);
        let (mut parser, mut answer) = (parser, Answer::default());
        let chars = Vec::from_iter(text.chars());
        for piece in chars.chunks(size) {
            let mut parts = Vec::new();
            parser.push(&String::from_iter(piece), &mut parts);
            assert!(parser.held_bytes() <= text.len());
            answer.add(&parts);
        }
        let mut parts = Vec::new();
        parser.finish(&mut parts);
        answer.add(&parts);
        assert_eq!(answer, whole, "the cut changed what was said");
        for (name, _) in &whole.calls {
            assert!(
                ["lamp", "read"].contains(&name.as_str()),
                "{name} is no tool"
            );
        }
        assert!(whole.content.len() <= text.len());
        assert!(parts.iter().all(|part| !matches!(part, Part::Call { .. })));
    }
}
