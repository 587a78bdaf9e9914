//! The server that the protocol's conformance suite asks for (the feature `conformance-fixtures`): its tools, prompts and resources,
//! behind our entrance. It shows that what is below the tools keeps the protocol. No released program has it.
//!
//! What the suite expects of each is in its own scenarios (`@modelcontextprotocol/conformance`); what is data is in `fixtures.json`.

// The suite's old tools use what the new protocol does without.
#![allow(deprecated)]

use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::any;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, CompleteRequestParams, CompleteResult,
    CompletionInfo, ContentBlock, GetPromptRequestParams, GetPromptResponse, GetPromptResult, Implementation,
    InputRequiredResult, InputResponses, JsonObject, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, LoggingLevel, LoggingMessageNotificationParam, PaginatedRequestParams,
    ProgressNotificationParam, ReadResourceRequestParams, ReadResourceResponse, RequestStateCodec, ResourceContents,
    ResultType, ServerCapabilities, ServerConfig, SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter,
    Tool, UnsubscribeRequestParams,
};
use rmcp::service::{RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::entrance::Entrance;
use super::is_modern;
use crate::app::App;

/// One red dot.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";

static DATA: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("fixtures.json").replace(r#""data": "PNG""#, &format!(r#""data": "{PNG}""#));
    serde_json::from_str(&text).expect("it is JSON")
});

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Tools,
    Prompts,
}

#[derive(Clone)]
struct Fixtures {
    changes: broadcast::Sender<Change>,
    states: RequestStateCodec,
}

/// Its one route.
pub(crate) fn routes(app: App) -> Router {
    let mut key = [0; 32];
    getrandom::fill(&mut key).expect("the machine gives randomness");
    let fixtures = Fixtures { changes: broadcast::channel(16).0, states: RequestStateCodec::new(key.to_vec()) };
    Router::new().route("/conformance/mcp", any(enter)).with_state(Entrance::new(app, fixtures))
}

async fn enter(State(entrance): State<Entrance<Fixtures>>, request: Request) -> axum::response::Response {
    entrance.enter(None, request).await
}

/// Something of the data, as the SDK has it.
fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error} in {value}"))
}

fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text.into())])
}

/// A text among the arguments.
fn argument(arguments: Option<&JsonObject>, name: &str) -> String {
    arguments.and_then(|arguments| arguments.get(name)?.as_str()).unwrap_or_default().to_owned()
}

fn internal(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

/// What is asked of the client, by the names of the questions.
fn questions(names: &[&str], state: Option<String>) -> InputRequiredResult {
    let asked = names.iter().map(|name| ((*name).to_owned(), read(&DATA["questions"][name]))).collect();
    InputRequiredResult::new(Some(asked), state)
}

/// What the client's user has filled in. Anything else is no answer.
fn filled_in(responses: &InputResponses, name: &str, field: &str) -> Option<String> {
    let response = responses.get(name)?;
    let value = &response["content"][field];
    (response["action"] == "accept" && !value.is_null())
        .then(|| value.as_str().map_or(value.to_string(), str::to_owned))
}

impl Fixtures {
    /// The state that came back, if it is one of ours.
    fn opened(&self, state: Option<&str>) -> Result<Option<String>, ErrorData> {
        let Some(state) = state else { return Ok(None) };
        let opened = self.states.open(state).map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
        Ok(Some(String::from_utf8_lossy(&opened).into_owned()))
    }

    fn sealed(&self, state: &str) -> Option<String> {
        Some(self.states.seal(state.as_bytes()))
    }

    /// The tools that need input of the client before they can answer.
    fn with_inputs(
        &self,
        request: &CallToolRequestParams,
        able: &ClientCapabilities,
    ) -> Result<Option<CallToolResponse>, ErrorData> {
        let none = InputResponses::default();
        let given = request.input_responses.as_ref().unwrap_or(&none);
        let state = self.opened(request.request_state.as_deref())?;
        Ok(Some(match &*request.name {
            "test_input_required_result_elicitation" | "test_streaming_elicitation" => {
                match filled_in(given, "user_name", "name") {
                    Some(name) => text(format!("Hello, {name}!")).into(),
                    None => questions(&["user_name"], None).into(),
                }
            }
            "test_input_required_result_sampling" => match given.get("capital_question") {
                Some(answer) => text(answer["content"]["text"].as_str().unwrap_or_default()).into(),
                None => questions(&["capital_question"], None).into(),
            },
            "test_input_required_result_list_roots" => match given.get("client_roots") {
                Some(answer) => text(format!("Roots: {}", answer["roots"])).into(),
                None => questions(&["client_roots"], None).into(),
            },
            "test_input_required_result_request_state" | "test_input_required_result_tampered_state" => {
                match (given.get("confirm"), state.as_deref()) {
                    (Some(_), Some("asked")) => text("state-ok").into(),
                    _ => questions(&["confirm"], self.sealed("asked")).into(),
                }
            }
            "test_input_required_result_multiple_inputs" => {
                let all = ["user_name", "greeting", "client_roots"];
                if state.as_deref() == Some("asked") && all.iter().all(|name| given.contains_key(*name)) {
                    text("All inputs are here.").into()
                } else {
                    questions(&all, self.sealed("asked")).into()
                }
            }
            "test_input_required_result_multi_round" => match state.as_deref() {
                Some("first") if given.contains_key("step1") => questions(&["step2"], self.sealed("second")).into(),
                Some("second") if given.contains_key("step2") => text("Both steps are done.").into(),
                _ => questions(&["step1"], self.sealed("first")).into(),
            },
            "test_input_required_result_capabilities" => {
                let can = [
                    ("user_name", able.elicitation.is_some()),
                    ("greeting", able.sampling.is_some()),
                    ("client_roots", able.roots.is_some()),
                ];
                let names: Vec<_> = can.iter().filter(|(_, can)| *can).map(|(name, _)| *name).collect();
                if names.is_empty() || names.iter().all(|name| given.contains_key(*name)) {
                    text("Nothing more is needed.").into()
                } else {
                    questions(&names, None).into()
                }
            }
            _ => return Ok(None),
        }))
    }

    /// Asks the client's user, as the old protocol does.
    async fn form(
        &self,
        name: &str,
        message: &str,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResult, ErrorData> {
        let fields = &DATA["forms"][name];
        let required: Vec<_> = match name {
            "test_elicitation" => fields.as_object().into_iter().flat_map(|fields| fields.keys()).collect(),
            _ => Vec::new(),
        };
        let asked = json!({ "mode": "form", "message": message,
            "requestedSchema": { "type": "object", "properties": fields, "required": required } });
        let answer = context.peer.create_elicitation(read(&asked)).await.map_err(internal)?;
        let answer = serde_json::to_value(answer).map_err(internal)?;
        let (action, content) = (answer["action"].as_str().unwrap_or_default(), &answer["content"]);
        Ok(text(match name {
            "test_elicitation" => format!("User response: action={action}, content={content}"),
            _ => format!("Elicitation completed: action={action}, content={content}"),
        }))
    }

    async fn log(&self, lines: &[&str], context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
        for line in lines {
            let line = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(line));
            context.peer.notify_logging_message(line).await.map_err(internal)?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn progress(&self, context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
        for done in [0.0, 50.0, 100.0] {
            if let Some(token) = context.meta.get_progress_token() {
                let beat = ProgressNotificationParam::new(token, done).with_total(100.0);
                context.peer.notify_progress(beat).await.map_err(internal)?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl ServerHandler for Fixtures {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_completions()
            .enable_logging()
            .build();
        ServerConfig::new(capabilities).with_server_info(Implementation::new("sandpool-conformance", "1"))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        read::<Vec<Tool>>(&DATA["tools"]).into_iter().find(|tool| tool.name == name)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(read(&DATA["tools"])))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(answer) = DATA["answers"].get(&*request.name) {
            let mut result: CallToolResult = read(answer);
            result.result_type = Some(ResultType::COMPLETE);
            return Ok(result.into());
        }
        let able = context.client_capabilities().unwrap_or_default();
        if let Some(answer) = self.with_inputs(&request, &able)? {
            return Ok(answer);
        }
        let argument = |name: &str| argument(request.arguments.as_ref(), name);
        let done = || text("It is done.");
        let result = match &*request.name {
            "test_tool_with_logging" => {
                let lines = ["Tool execution started", "Tool processing data", "Tool execution completed"];
                self.log(&lines, &context).await?;
                done()
            }
            "test_logging_tool" => {
                if context.meta.log_level().is_some() {
                    self.log(&["It was asked for."], &context).await?;
                }
                done()
            }
            "test_tool_with_progress" => {
                self.progress(&context).await?;
                done()
            }
            "test_sampling" => {
                let asked = json!({ "maxTokens": 100,
                    "messages": [{ "role": "user", "content": { "type": "text", "text": argument("prompt") } }] });
                let answer = context.peer.create_message(read(&asked)).await.map_err(internal)?;
                let answer = serde_json::to_value(answer).map_err(internal)?;
                text(format!("LLM response: {}", answer["content"]["text"].as_str().unwrap_or_default()))
            }
            "test_elicitation" => self.form(&request.name, &argument("message"), &context).await?,
            "test_elicitation_sep1034_defaults" | "test_elicitation_sep1330_enums" => {
                self.form(&request.name, "Please fill this in", &context).await?
            }
            "test_missing_capability" => {
                if able.sampling.is_none() {
                    let needed = ClientCapabilities::builder().enable_sampling().build();
                    return Err(ErrorData::missing_required_client_capability(needed));
                }
                done()
            }
            "test_trigger_tool_change" | "test_trigger_prompt_change" => {
                let changed =
                    if &*request.name == "test_trigger_tool_change" { Change::Tools } else { Change::Prompts };
                // Nobody listens: nobody hears it.
                let _ = self.changes.send(changed);
                done()
            }
            other => return Err(ErrorData::invalid_params(format!("Unknown tool: {other}"), None)),
        };
        Ok(result.into())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(read(&DATA["resources"])))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(read(&DATA["templates"])))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let uri = &request.uri;
        let id = uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data"));
        let contents = match (uri.as_str(), id) {
            ("test://static-text", _) => {
                ResourceContents::text("This is the content of the static text resource.", uri)
                    .with_mime_type("text/plain")
            }
            ("test://static-binary", _) => ResourceContents::blob(PNG, uri).with_mime_type("image/png"),
            ("test://watched-resource", _) => ResourceContents::text("Watched.", uri).with_mime_type("text/plain"),
            (_, Some(id)) => {
                let data = json!({ "id": id, "templateTest": true, "data": format!("Data for ID: {id}") });
                ResourceContents::text(data.to_string(), uri).with_mime_type("application/json")
            }
            _ => return Err(ErrorData::resource_not_found("Resource not found", Some(json!({ "uri": uri })))),
        };
        Ok(rmcp::model::ReadResourceResult::new(vec![contents]).into())
    }

    async fn subscribe(&self, _: SubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(&self, _: UnsubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(read(&DATA["prompts"])))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let argument = |name: &str| argument(request.arguments.as_ref(), name);
        let say = |words: String| json!({ "role": "user", "content": { "type": "text", "text": words } });
        let messages = match &*request.name {
            "test_simple_prompt" => json!([say("This is a simple prompt for testing.".to_owned())]),
            "test_prompt_with_arguments" => {
                let words = format!("Prompt with arguments: arg1='{}', arg2='{}'", argument("arg1"), argument("arg2"));
                json!([say(words)])
            }
            "test_prompt_with_embedded_resource" => json!([
                { "role": "user", "content": { "type": "resource", "resource": { "uri": argument("resourceUri"),
                    "mimeType": "text/plain", "text": "Embedded resource content for testing." } } },
                say("Please process the embedded resource above.".to_owned()),
            ]),
            "test_prompt_with_image" => json!([
                { "role": "user", "content": { "type": "image", "data": PNG, "mimeType": "image/png" } },
                say("Please analyze the image above.".to_owned()),
            ]),
            "test_input_required_result_prompt" => {
                let given = request.input_responses.as_ref();
                match given.and_then(|given| filled_in(given, "user_context", "context")) {
                    Some(context) => json!([say(format!("The context is {context}."))]),
                    None => return Ok(questions(&["user_context"], None).into()),
                }
            }
            other => return Err(ErrorData::invalid_params(format!("Unknown prompt: {other}"), None)),
        };
        Ok(GetPromptResult::new(read(&messages)).into())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let begun = &request.argument.value;
        let values: Vec<_> =
            ["paris", "park", "party", "testing"].into_iter().filter(|word| word.starts_with(begun)).collect();
        let values = values.into_iter().map(str::to_owned).collect();
        Ok(CompleteResult::new(CompletionInfo::with_all_values(values).map_err(internal)?))
    }

    async fn set_level(&self, _: SetLevelRequestParams, context: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        if context.protocol_version().is_some_and(|version| is_modern(&version)) {
            return Err(ErrorData::method_not_found::<rmcp::model::SetLevelRequestMethod>());
        }
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.changes.subscribe();
        let accepted = subscription.accepted();
        let (tools, prompts) = (accepted.tools_list_changed == Some(true), accepted.prompts_list_changed == Some(true));
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = subscription.cancelled() => return Ok(()),
            };
            let sent = match change {
                Ok(Change::Tools) if tools => subscription.sink().notify_tool_list_changed().await,
                Ok(Change::Prompts) if prompts => subscription.sink().notify_prompt_list_changed().await,
                Ok(_) => Ok(()),
                Err(_) => return Ok(()),
            };
            if sent.is_err() {
                return Ok(());
            }
        }
    }
}
