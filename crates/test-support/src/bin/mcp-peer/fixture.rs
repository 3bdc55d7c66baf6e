//! What the server offers, as data: `fixture.json`.

use std::collections::BTreeMap;

use rmcp::model::{
    CallToolResult, InputRequests, JsonObject, Prompt, PromptArgument, PromptMessage, Resource, ResourceContents,
    ServerCapabilities, Tool,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Everything that answers without code, and what else there is by name.
#[derive(Deserialize)]
pub(crate) struct Fixture {
    pub(crate) capabilities: ServerCapabilities,
    /// In the order in which they are listed; the suite calls the first one with nothing.
    tools: Vec<ToolEntry>,
    resources: BTreeMap<String, JsonObject>,
    prompts: BTreeMap<String, PromptEntry>,
}

/// In its texts `{argument}` stands for an argument of the call.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolEntry {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    input: Option<JsonObject>,
    /// What it says when all is done.
    #[serde(default)]
    answer: Option<Value>,
    /// What it must know first, round by round.
    #[serde(default)]
    pub(crate) asks: Vec<Value>,
    /// Whether only its own `requestState` leads to the next round.
    #[serde(default)]
    pub(crate) sealed: bool,
    /// Whether it becomes a task for clients that know of those.
    #[serde(default)]
    pub(crate) task: Option<TaskEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskEntry {
    /// Whether it is refused to clients that do not know of tasks.
    #[serde(default)]
    pub(crate) required: bool,
    /// What the task asks for, all at once.
    #[serde(default)]
    pub(crate) asks: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromptEntry {
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default)]
    pub(crate) asks: Vec<Value>,
    messages: Value,
}

impl Fixture {
    pub(crate) fn read() -> Self {
        let mut fixture: Value = serde_json::from_str(include_str!("fixture.json")).expect("the fixture is JSON");
        let shared = fixture["shared"].take();
        replace(&mut fixture, &|text| shared.get(text).cloned());
        serde_json::from_value(fixture).expect("the fixture has the shape of its types")
    }

    pub(crate) fn tool(&self, name: &str) -> Option<&ToolEntry> {
        self.tools.iter().find(|entry| entry.name == name)
    }

    pub(crate) fn prompt(&self, name: &str) -> Option<&PromptEntry> {
        self.prompts.get(name)
    }

    pub(crate) fn all_tools(&self) -> Vec<Tool> {
        self.tools.iter().map(ToolEntry::described).collect()
    }

    pub(crate) fn described(&self, name: &str) -> Option<Tool> {
        self.tool(name).map(ToolEntry::described)
    }

    pub(crate) fn all_resources(&self) -> Vec<Resource> {
        let described = |(uri, contents): (&String, &JsonObject)| {
            Resource::new(uri, uri.trim_start_matches("test://"))
                .with_description(format!("The resource {uri}"))
                .with_mime_type(contents["mimeType"].as_str().expect("a resource has a type"))
        };
        self.resources.iter().map(described).collect()
    }

    pub(crate) fn contents(&self, uri: &str) -> Option<ResourceContents> {
        let mut contents = self.resources.get(uri)?.clone();
        contents.insert("uri".into(), uri.into());
        Some(read(&contents.into()))
    }

    pub(crate) fn all_prompts(&self) -> Vec<Prompt> {
        let argument = |name: &String| PromptArgument::new(name).with_description(name).with_required(true);
        let described = |(name, entry): (&String, &PromptEntry)| {
            let arguments = entry.arguments.iter().map(argument).collect();
            Prompt::new(name, Some(format!("The prompt {name}")), Some(arguments))
        };
        self.prompts.iter().map(described).collect()
    }
}

impl ToolEntry {
    fn described(&self) -> Tool {
        let name = &self.name;
        let description = self.description.clone().unwrap_or_else(|| format!("The tool {name}"));
        let input = self.input.clone().unwrap_or_else(|| read(&json!({ "type": "object", "properties": {} })));
        Tool::new(name.clone(), description, input)
    }

    pub(crate) fn answer(&self, arguments: &JsonObject) -> Option<CallToolResult> {
        let mut answer = filled_in(self.answer.as_ref()?, arguments);
        answer["resultType"] = "complete".into();
        Some(read(&answer))
    }
}

impl PromptEntry {
    pub(crate) fn messages(&self, arguments: &JsonObject) -> Vec<PromptMessage> {
        read(&filled_in(&self.messages, arguments))
    }
}

/// The requests of one round.
pub(crate) fn requests(round: &Value, arguments: &JsonObject) -> InputRequests {
    if round.is_null() { InputRequests::new() } else { read(&filled_in(round, arguments)) }
}

fn filled_in(template: &Value, arguments: &JsonObject) -> Value {
    let mut value = template.clone();
    replace(&mut value, &|text| {
        let filled = arguments.iter().fold(text.to_owned(), |text, (name, argument)| {
            text.replace(&format!("{{{name}}}"), argument.as_str().unwrap_or_default())
        });
        Some(filled.into())
    });
    value
}

/// Puts what `by` gives in the place of every text.
fn replace(value: &mut Value, by: &impl Fn(&str) -> Option<Value>) {
    match value {
        Value::String(text) => {
            if let Some(other) = by(text) {
                *value = other;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, by)),
        Value::Object(members) => members.values_mut().for_each(|member| replace(member, by)),
        _ => {}
    }
}

/// # Panics
/// The fixture does not have what MCP asks for.
fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    T::deserialize(value).unwrap_or_else(|error| panic!("{error}: {value}"))
}
