//! Errors as the user sees them: what, why, and what to do.

use std::error::Error;
use std::fmt::Display;

use super::Exit;
use crate::manifest::InputError;
use crate::text::chain;

/// A command could not do what it was asked.
#[derive(Debug)]
pub(super) struct CliError {
    exit: Exit,
    /// One message with its hint each; several where several files have mistakes.
    messages: Vec<(String, Option<String>)>,
}

impl CliError {
    /// It could not be done.
    pub(super) fn failed(error: &dyn Error) -> Self {
        Self { exit: Exit::Failed, messages: vec![(chain(error), None)] }
    }

    /// The user asked for something that makes no sense.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, messages: vec![(message.into(), None)] }
    }

    /// The same with advice.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some((_, last)) = self.messages.last_mut() {
            *last = Some(hint.into());
        }
        self
    }

    /// What was attempted, before the reason.
    pub(super) fn context(mut self, what: impl Display) -> Self {
        if let Some((message, _)) = self.messages.first_mut() {
            *message = format!("{what}: {message}");
        }
        self
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    pub(super) fn messages(&self) -> &[(String, Option<String>)] {
        &self.messages
    }
}

impl From<Vec<InputError>> for CliError {
    fn from(errors: Vec<InputError>) -> Self {
        let messages = errors.into_iter().map(|error| (error.to_string(), error.hint)).collect();
        Self { exit: Exit::Usage, messages }
    }
}

impl From<InputError> for CliError {
    fn from(error: InputError) -> Self {
        vec![error].into()
    }
}

macro_rules! failed_from {
    ($($error:ty),*) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::failed(&error)
            }
        })*
    };
}

failed_from!(std::io::Error, crate::sources::SourceError, crate::smoke::RecordError);

impl From<crate::inventory::SelectorError> for CliError {
    fn from(error: crate::inventory::SelectorError) -> Self {
        Self::usage(error.to_string()).hint("use names with *, tag:T, store:S or section:S")
    }
}

impl From<crate::facts::FactsError> for CliError {
    fn from(error: crate::facts::FactsError) -> Self {
        Self::failed(&error).hint("delete the file: it is only a cache, and files are then read again")
    }
}
