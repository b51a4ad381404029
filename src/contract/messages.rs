//! The bodies that travel: what each is for, its schema, and examples from `tests/wire/v1/`.

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain";
/// Definitions of user properties.
pub(super) const REQUEST_HEADERS: &str = "RequestHeaders";
pub(super) const ANSWER_HEADERS: &str = "AnswerHeaders";

/// A body on a topic.
pub(super) struct Message {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) summary: &'static str,
    pub(super) content_type: &'static str,
    /// Name of the definition of its payload.
    pub(super) schema: &'static str,
    /// Name of the definition of its user properties.
    pub(super) headers: Option<&'static str>,
    /// Names, and payloads as JSON.
    pub(super) examples: &'static [(&'static str, &'static str)],
}

macro_rules! pinned {
    ($($name:literal),*) => {
        &[$(($name, include_str!(concat!("../../tests/wire/v1/", $name, ".json")))),*]
    };
}

pub(super) const MESSAGES: &[Message] = &[
    Message {
        name: "chatRequest",
        title: "Messages of a conversation",
        summary: "OpenAI's body for chat completions, with a few keys more.",
        content_type: JSON,
        schema: "ChatRequest",
        headers: Some(REQUEST_HEADERS),
        examples: pinned!(
            "request_chat_small",
            "request_chat",
            "request_chat_logprobs",
            "request_chat_session",
            "request_chat_template"
        ),
    },
    Message {
        name: "completeRequest",
        title: "A prompt to continue",
        summary: "OpenAI's body for completions, with a few keys more.",
        content_type: JSON,
        schema: "CompleteRequest",
        headers: Some(REQUEST_HEADERS),
        examples: pinned!("request_complete"),
    },
    Message {
        name: "tokenizeRequest",
        title: "A prompt or messages to tokenize",
        summary: "Either prompt or messages.",
        content_type: JSON,
        schema: "TokenizeRequest",
        headers: None,
        examples: pinned!("request_tokenize"),
    },
    Message {
        name: "embedRequest",
        title: "Texts to turn into vectors",
        summary: "OpenAI's body for embeddings.",
        content_type: JSON,
        schema: "EmbedRequest",
        headers: None,
        examples: pinned!("request_embed"),
    },
    Message {
        name: "textRequest",
        title: "Plain text",
        summary: "For devices without JSON.",
        content_type: TEXT,
        schema: "TextRequest",
        headers: Some(REQUEST_HEADERS),
        examples: &[("text", "\"What is 2 bar in psi?\"")],
    },
    Message {
        name: "cancel",
        title: "Nothing",
        summary: "The topic says it all; a payload is ignored, leave it empty.",
        content_type: TEXT,
        schema: "Nothing",
        headers: None,
        examples: &[("empty", "\"\"")],
    },
    Message {
        name: "accepted",
        title: "Accepted",
        summary: "seq 0: the request is on the node's disk and will end with exactly one final, also after a power cut.",
        content_type: JSON,
        schema: "Response",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("accepted_chat", "accepted_complete"),
    },
    Message {
        name: "chunk",
        title: "Text of a stream",
        summary: "What came since the message before it.",
        content_type: JSON,
        schema: "Response",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("chunk_chat", "chunk_complete", "chunk_chat_logprobs"),
    },
    Message {
        name: "final",
        title: "End of a stream",
        summary: "Why the answer ended, counts, times, and the SHA-256 of the whole text.",
        content_type: JSON,
        schema: "Response",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!(
            "final_chat",
            "final_chat_cancelled",
            "final_complete",
            "final_chat_session"
        ),
    },
    Message {
        name: "whole",
        title: "Answer in one message",
        summary: "Where the request said \"stream\": false.",
        content_type: JSON,
        schema: "Response",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("whole_chat", "whole_complete"),
    },
    Message {
        name: "tokens",
        title: "Token ids",
        summary: "The one answer to op tokenize.",
        content_type: JSON,
        schema: "Tokens",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("tokens"),
    },
    Message {
        name: "embeddings",
        title: "Vectors",
        summary: "The one answer to op embed.",
        content_type: JSON,
        schema: "Embeddings",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("embeddings", "embeddings_base64"),
    },
    Message {
        name: "failure",
        title: "Error",
        summary: "The final of a request that was refused or failed.",
        content_type: JSON,
        schema: "Failure",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("error_param", "error_retry"),
    },
    Message {
        name: "bareText",
        title: "Bare text",
        summary: "The one answer to op text; a piece of the answer to op text-stream, ended by an empty payload; or `!code message`, an error, which is the last message.",
        content_type: TEXT,
        schema: "BareText",
        headers: Some(ANSWER_HEADERS),
        examples: &[
            ("answer", "\"29 psi\""),
            ("end of a stream", "\"\""),
            ("error", "\"!no_model no model is installed, add one\""),
        ],
    },
    Message {
        name: "status",
        title: "Whether the node is there",
        summary: "Published at each start and change; offline is also the last will.",
        content_type: JSON,
        schema: "Status",
        headers: None,
        examples: pinned!("status_online", "status_draining", "status_offline"),
    },
    Message {
        name: "info",
        title: "What the node is",
        summary: "Version of the contract, limits, board, engine.",
        content_type: JSON,
        schema: "Info",
        headers: None,
        examples: pinned!("info_sandbox", "info_pools", "info_templates"),
    },
    Message {
        name: "models",
        title: "Which models there are",
        summary: "Names for the key model of requests.",
        content_type: JSON,
        schema: "Models",
        headers: None,
        examples: pinned!("models", "models_none"),
    },
    Message {
        name: "state",
        title: "What the node does now",
        summary: "Loading, serving, and why not.",
        content_type: JSON,
        schema: "State",
        headers: None,
        examples: pinned!(
            "state_serving",
            "state_loading",
            "state_no_model",
            "state_pools_away"
        ),
    },
    Message {
        name: "pressureEvent",
        title: "A step of the memory watchdog",
        summary: "What was read, what was done, what came back.",
        content_type: JSON,
        schema: "PressureEvent",
        headers: None,
        examples: &[(
            "park",
            r#"{"from":"trim","to":"park","at_ms":1790000004123,"available_bytes":314572800,"threshold_bytes":402653184,"action":"new requests are refused, batch jobs wait","relief_bytes":0,"returned_bytes":-1048576}"#,
        )],
    },
    Message {
        name: "switchEvent",
        title: "Another model",
        summary: "Which, and whether it serves.",
        content_type: JSON,
        schema: "SwitchEvent",
        headers: None,
        examples: &[(
            "served",
            r#"{"model":"smollm2-135m","at_ms":1790000000123,"served":true,"reason":"ordered"}"#,
        )],
    },
    Message {
        name: "modelName",
        title: "Name of a model",
        summary: "As models lists it.",
        content_type: TEXT,
        schema: "BareText",
        headers: None,
        examples: &[("a model", r#""smollm2-135m""#)],
    },
    Message {
        name: "allRequests",
        title: "All requests",
        summary: "The word all.",
        content_type: TEXT,
        schema: "BareText",
        headers: None,
        examples: &[("all", r#""all""#)],
    },
    Message {
        name: "modelCommand",
        title: "Order for a model",
        summary: "And how far it is.",
        content_type: JSON,
        schema: "ModelCommand",
        headers: None,
        examples: &[
            ("order", r#"{"status":"init","model":"smollm2-135m"}"#),
            ("done", r#"{"status":"successful","model":"smollm2-135m"}"#),
        ],
    },
    Message {
        name: "otaState",
        title: "Updates: what runs and what is under way",
        summary: "Release, phase, progress and reason.",
        content_type: JSON,
        schema: "OtaState",
        headers: None,
        examples: &[
            (
                "downloading",
                r#"{"deployment":"d-2026-11-21-3","state":"downloading","line":"assistant","release_seq":12,"bytes_done":1073741824,"bytes_total":2497281120,"rate_kbit_s":84000,"eta_s":136,"attempt":0,"lines":[{"line":"assistant","active":{"release_seq":11,"model":"qwen3-4b"}}],"metadata":{"root":3,"timestamp":41,"snapshot":41,"targets":41,"age_days":19,"freshness":"fresh"},"clock":"synced","disk_free_mib":51200,"installed_version":"qwen3-4b","latest_version":"qwen3-4b-v2","in_progress":true,"update_percentage":43,"title":"assistant"}"#,
            ),
            (
                "rolled back",
                r#"{"deployment":"d-2026-11-21-3","state":"rolled_back","reason":"probe_golden","detail":"golden prompt 1: \"Rome\" has no match for \"(?i)paris\"","line":"assistant","release_seq":12,"attempt":0,"lines":[{"line":"assistant","active":{"release_seq":11,"model":"qwen3-4b"}}],"in_progress":false}"#,
            ),
        ],
    },
    Message {
        name: "otaEvent",
        title: "Updates: a step",
        summary: "Where a deployment is now, and why.",
        content_type: JSON,
        schema: "OtaEvent",
        headers: None,
        examples: &[(
            "committed",
            r#"{"deployment":"d-2026-11-21-3","line":"assistant","release_seq":12,"state":"committed","detail":"loaded in 3.1 s, 3 prompts answered, 2650 MiB","at_ms":1795267000000}"#,
        )],
    },
    Message {
        name: "otaDesired",
        title: "Updates: what a fleet is to run",
        summary: "A choice among signed releases.",
        content_type: JSON,
        schema: "OtaDesired",
        headers: None,
        examples: &[(
            "at night",
            r#"{"desired_seq":7,"deployment":"d-2026-11-21-3","line":"assistant","release_seq":12,"when":"window","window":"22:00-05:00","max_kbit_s":20000,"force":false,"percent":25}"#,
        )],
    },
    Message {
        name: "otaCommand",
        title: "Updates: an order",
        summary: "And what became of it.",
        content_type: JSON,
        schema: "OtaCommand",
        headers: None,
        examples: &[
            ("order", r#"{"status":"init","action":"check"}"#),
            (
                "taken",
                r#"{"status":"successful","deployment":"cmd-01J9Z4"}"#,
            ),
            (
                "refused",
                r#"{"status":"failed","reason":"nothing is being downloaded"}"#,
            ),
        ],
    },
    Message {
        name: "updateWord",
        title: "Updates: a word",
        summary: "install, check, cancel or rollback.",
        content_type: TEXT,
        schema: "BareText",
        headers: None,
        examples: &[("install", r#""install""#)],
    },
    Message {
        name: "teleHost",
        title: "Numbers of the board",
        summary: "What it does not have is absent.",
        content_type: JSON,
        schema: "TeleHost",
        headers: None,
        examples: &[(
            "no sensors",
            r#"{"at_ms":1790000000123,"memory_total_bytes":16416882688,"memory_available_bytes":9077678080}"#,
        )],
    },
    Message {
        name: "teleGpu",
        title: "Numbers of its GPU",
        summary: "Load and clocks.",
        content_type: JSON,
        schema: "TeleGpu",
        headers: None,
        examples: &[(
            "busy",
            r#"{"at_ms":1790000000123,"load_percent":87.5,"clock_mhz":918,"clock_max_mhz":918}"#,
        )],
    },
    Message {
        name: "teleLlm",
        title: "Numbers of the model and its streams",
        summary: "Since the numbers before, and since the start.",
        content_type: JSON,
        schema: "TeleLlm",
        headers: None,
        examples: &[(
            "idle",
            r#"{"at_ms":1790000000123,"model":"smollm2-135m","streams_count":0,"tok_s":0.0,"tokens_count":81244,"prompt_tokens_count":20312,"cached_tokens_count":9120,"engine_deaths_count":0}"#,
        )],
    },
    Message {
        name: "teleQueue",
        title: "Numbers of the requests",
        summary: "Now, and since the start.",
        content_type: JSON,
        schema: "TeleQueue",
        headers: None,
        examples: pinned!("tele_queue", "tele_queue_classes"),
    },
];
