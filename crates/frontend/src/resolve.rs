//! Asks for the configs of base images: each one once, all of a round at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kiln_dockerfile::{Diagnostic, Span};
use kiln_graph::SourceOp;
use kiln_oci::Platform;

use crate::plan::suggest_stage;
use crate::request::{BoxError, LowerError, LowerRequest, MetaResolver, Resolved};

/// More questions at once than this help no registry.
const PARALLEL: usize = 16;

/// A question to the resolver, and the place that asks it.
#[derive(Debug, Clone)]
pub struct Question {
    /// Of what the config is wanted.
    pub source: SourceOp,
    /// For which platform.
    pub platform: Platform,
    /// The name as the Dockerfile has it.
    pub written: String,
    /// Shown to people.
    pub title: String,
    /// Where the name is.
    pub span: Span,
}

/// Everything that was resolved, for all platforms.
#[derive(Debug, Default)]
pub struct Answers {
    known: HashMap<(String, Platform), Arc<Resolved>>,
}

impl Answers {
    /// The answer to a question that was asked.
    pub fn get(&self, source: &SourceOp, platform: &Platform) -> Option<Arc<Resolved>> {
        self.known.get(&(source.identifier(), platform.clone())).cloned()
    }

    /// Asks what is not known yet. If several fail, the first in the Dockerfile is told.
    pub fn ask(
        &mut self,
        questions: Vec<Question>,
        request: &LowerRequest,
        resolver: &dyn MetaResolver,
    ) -> Result<(), LowerError> {
        let mut open: Vec<Question> = Vec::new();
        let mut asked = std::collections::HashSet::new();
        for question in questions {
            let key = (question.source.identifier(), question.platform.clone());
            if !self.known.contains_key(&key) && asked.insert(key) {
                open.push(question);
            }
        }
        let answers = ask_all(&open, resolver);
        for (question, answer) in open.into_iter().zip(answers) {
            let key = (question.source.identifier(), question.platform.clone());
            match answer {
                Ok(resolved) => drop(self.known.insert(key, Arc::new(resolved))),
                Err(error) => return Err(failed(request, &question, error)),
            }
        }
        Ok(())
    }
}

fn ask_all(questions: &[Question], resolver: &dyn MetaResolver) -> Vec<Result<Resolved, BoxError>> {
    let ask = |q: &Question| resolver.resolve(&q.source, &q.platform, &q.title);
    if let [only] = questions {
        return vec![ask(only)];
    }
    let next = Mutex::new(questions.iter().enumerate());
    let answers = Mutex::new(Vec::with_capacity(questions.len()));
    std::thread::scope(|scope| {
        for _ in 0..questions.len().min(PARALLEL) {
            scope.spawn(|| {
                loop {
                    let job = next.lock().unwrap_or_else(|e| e.into_inner()).next();
                    let Some((index, question)) = job else { break };
                    let answer = ask(question);
                    answers.lock().unwrap_or_else(|e| e.into_inner()).push((index, answer));
                }
            });
        }
    });
    let mut answers = answers.into_inner().unwrap_or_else(|e| e.into_inner());
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn failed(request: &LowerRequest, question: &Question, error: BoxError) -> LowerError {
    let mut diagnostic = Diagnostic::error(question.span, format!("{}: {error}", question.written));
    diagnostic.help = suggest_stage(request, &question.written);
    LowerError::Resolve { diagnostic: Box::new(diagnostic), source: error }
}
