//! Jobs whose grammar or schema is judged before they take their place in the queue.

use tracing::debug;

use super::Dispatch;
use super::job::{Ending, Phase};
use crate::frames::{JobKey, Refused};
use crate::wire::error::{ApiError, Code};
use crate::wire::request::Request;
use crate::worker::Verdict;

/// Names of a schema may be as long as a payload.
const PLACE_BYTES_MAX: usize = 512;

impl Dispatch {
    /// The job takes its place in the queue, at once or when its grammar is found good.
    pub(super) fn line_up(&mut self, key: JobKey) {
        let Some(job) = self.jobs.get_mut(&key) else {
            return;
        };
        let forms = job.to_check();
        if forms.is_empty() {
            return self.enqueue(key);
        }
        if !self.checker.ask(key, forms) {
            job.unchecked = None;
            let text = "too many schemas wait to be judged";
            let error = ApiError::new(Code::QueueFull, text).with_retry(1000);
            job.end(Ending::Failed(error));
        }
    }

    pub(super) fn on_verdict(&mut self, verdict: Verdict) {
        let Some(job) = self.jobs.get_mut(&verdict.job) else {
            return;
        };
        if job.phase != Phase::Open || job.unchecked.is_none() {
            return; // Called off meanwhile.
        }
        match verdict.outcome {
            Ok(()) => self.enqueue(verdict.job),
            Err((at, refused)) => {
                debug!(user = %job.address.user, id = %job.address.id, reason = refused.reason, "a grammar is not taken");
                job.unchecked = None;
                let error = error_of(&job.request, at, &refused);
                job.end(Ending::Failed(error));
            }
        }
    }

    fn enqueue(&mut self, key: JobKey) {
        let Some(job) = self.jobs.get_mut(&key) else {
            return;
        };
        if let Some(order) = job.unchecked.take()
            && let Some(job) = self.jobs.get(&key)
        {
            let terms = self.terms(&job.address.user, &job.request);
            self.queue.push(order, key, &job.address.user, terms);
        }
    }
}

/// The key at fault, and the place in the schema that it holds. `at`: which tool's schema.
fn error_of(request: &Request, at: usize, refused: &Refused) -> ApiError {
    let place = |from: String, way: &[String]| {
        let steps = std::iter::once(from).chain(way.iter().cloned());
        let way = Vec::from_iter(steps).join(".");
        crate::wire::reply::cut(&way, PLACE_BYTES_MAX).to_owned()
    };
    let param = match (&request.tools, &request.constraint) {
        (Some(_), _) => place(format!("tools[{at}].function.parameters"), &refused.place),
        (None, Some(crate::frames::Constraint::Lark(_))) => "grammar".to_owned(),
        _ => place(
            "response_format.json_schema.schema".to_owned(),
            &refused.place,
        ),
    };
    let text = match refused.exceeded {
        true => format!("{param} costs too much to compile: {}", refused.reason),
        false => format!("{param} cannot be kept: {}", refused.reason),
    };
    ApiError::new(Code::InvalidRequest, text).with_param(param)
}
