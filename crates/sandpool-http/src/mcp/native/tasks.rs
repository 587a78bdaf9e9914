//! Executions as tasks of the protocol (the extension `io.modelcontextprotocol/tasks`): for clients that say with their request that
//! they know tasks. A task is an execution, its id is `SESSION_ID/EXECUTION_ID`, and what is asked of it is answered from the
//! execution's record, also after a restart.

use std::time::{Duration, SystemTime};

use rmcp::ErrorData;
use rmcp::model::{CreateTaskResult, DetailedTask, GetTaskResult, Task, TaskPayload, TaskStatus};
use sandpool_core::ids::ExecutionId;
use sandpool_node::{Execution, ExecutionState, Outcome, Stop};

use super::place::Place;
use super::shown;
use super::{Asked, Told};
use crate::auth::Scope;
use crate::native::shown::instant;

/// How long a run is waited for before its client has a task.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How often it should ask, in milliseconds.
const POLL_MS: u64 = 1_000;

fn invalid(told: Told) -> ErrorData {
    ErrorData::invalid_params(told.text, None)
}

fn task(place: &Place, execution: &Execution) -> Task {
    let status = match &execution.state {
        ExecutionState::Queued | ExecutionState::Running => TaskStatus::Working,
        ExecutionState::Ended(Outcome::Cancelled) => TaskStatus::Cancelled,
        ExecutionState::Ended(_) => TaskStatus::Completed,
    };
    let id = format!("{}/{}", place.session_id(), execution.id);
    let created = execution.created;
    let changed = match status {
        TaskStatus::Working => SystemTime::now(),
        _ => created + execution.queued.unwrap_or_default() + execution.duration.unwrap_or_default(),
    };
    let told = match status {
        TaskStatus::Working => shown::last_line(execution),
        _ => "It has ended.".to_owned(),
    };
    Task::new(id, status, instant(created), instant(changed)).with_poll_interval_ms(POLL_MS).with_status_message(told)
}

/// What a client that knows tasks is answered about a run that goes on.
pub(super) fn created(place: &Place, execution: &Execution) -> CreateTaskResult {
    CreateTaskResult::new(task(place, execution))
}

impl Asked<'_> {
    /// Whether the client can be answered with a task.
    pub(super) fn knows_tasks(&self) -> bool {
        self.context.client_capabilities().is_some_and(|able| able.supports_tasks())
    }

    /// The execution that a task's id means.
    fn meant(&self, task: &str) -> Result<(Place, ExecutionId), ErrorData> {
        let unknown =
            || invalid(Told::new(format!("There is no task {:?}.", task.chars().take(200).collect::<String>())));
        let (session_id, id) = task.rsplit_once('/').ok_or_else(unknown)?;
        let id = ExecutionId::parse(id).ok_or_else(unknown)?;
        self.principal().allows(Scope::Execute).map_err(|failure| invalid(failure.into()))?;
        Ok((self.asker.place(session_id).map_err(invalid)?, id))
    }

    /// How a task is, and what came of it.
    pub(super) async fn task(&self, named: &str) -> Result<GetTaskResult, ErrorData> {
        let (place, id) = self.meant(named)?;
        let (execution, output) = self.output(&place, id).await.map_err(invalid)?;
        let task = task(&place, &execution);
        let payload = match task.status {
            TaskStatus::Working => TaskPayload::Working,
            TaskStatus::Cancelled => TaskPayload::Cancelled,
            _ => {
                let result = shown::execution(&place, &execution, &output).await;
                match serde_json::to_value(result) {
                    Ok(serde_json::Value::Object(result)) => TaskPayload::Completed { result },
                    _ => return Err(ErrorData::internal_error("the result cannot be written", None)),
                }
            }
        };
        Ok(GetTaskResult::new(DetailedTask::new(task, payload)))
    }

    /// Stops a task: it is told so, and ends as it likes within seconds.
    pub(super) async fn cancel_task(&self, named: &str) -> Result<(), ErrorData> {
        let (place, id) = self.meant(named)?;
        match self.app.node.execution(&place.pool, &place.key, &id).await {
            Ok(handle) => {
                // It has ended in the meantime: there is nothing to stop.
                let _ = handle.stop(Stop::Interrupt).await;
                Ok(())
            }
            // What is over cannot be stopped, and need not be.
            Err(error) => self.output(&place, id).await.map(|_| ()).map_err(|_| invalid(error.into())),
        }
    }
}
