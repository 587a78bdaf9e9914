// Holds src/wire.ts against the API's description, type by type: every key, whether it may be missing, and what it holds.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import ts from "typescript";

const TYPES = new URL("../src/wire.ts", import.meta.url);
const DOCUMENT = new URL("../../../docs/openapi.json", import.meta.url);

/** Schemas that have another name here. */
const RENAMED: Record<string, string> = { Execution: "ExecutionRecord", File: "FileRecord", Session: "SessionRecord" };

interface Schema {
  $ref?: string;
  type?: string | string[];
  enum?: (string | null)[];
  oneOf?: Schema[];
  items?: Schema;
  properties?: Record<string, Schema>;
  required?: string[];
  additionalProperties?: boolean | Schema;
}

const schemas: Record<string, Schema> = JSON.parse(readFileSync(DOCUMENT, "utf8")).components.schemas;

/** A schema as a type, in a form that can be compared. */
function ofSchema(schema: Schema): string {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1)!;
    return RENAMED[name] ?? name;
  }
  if (schema.oneOf) return union(schema.oneOf.flatMap((one) => ofSchema(one).split(" | ")));
  if (schema.enum) return union(schema.enum.map((one) => JSON.stringify(one)));
  const types = typeof schema.type === "string" ? [schema.type] : schema.type;
  assert(types, JSON.stringify(schema));
  return union(types.map((type) => plain(type, schema)));
}

function plain(type: string, schema: Schema): string {
  switch (type) {
    case "integer":
      return "number";
    case "array": {
      const item = ofSchema(schema.items!);
      return item.includes(" | ") ? `(${item})[]` : `${item}[]`;
    }
    case "object": {
      if (!schema.properties) return `Record<string, ${ofSchema(schema.additionalProperties as Schema)}>`;
      return object(Object.entries(schema.properties).map(([name, one]) => [name, schema.required?.includes(name) ?? false, ofSchema(one)]));
    }
    default:
      return type;
  }
}

const union = (parts: string[]) => [...new Set(parts)].sort().join(" | ");
const object = (keys: [string, boolean, string][]) =>
  `{ ${keys.map(([name, isRequired, type]) => `${name}${isRequired ? "" : "?"}: ${type}`).sort().join("; ")} }`;

const source = ts.createSourceFile("wire.ts", readFileSync(TYPES, "utf8"), ts.ScriptTarget.Latest, true);
const interfaces = new Map(source.statements.filter(ts.isInterfaceDeclaration).map((one) => [one.name.text, one]));

/** A type of ours, in the same form. */
function ofNode(node: ts.TypeNode): string {
  if (ts.isUnionTypeNode(node)) return union(node.types.map(ofNode));
  if (ts.isArrayTypeNode(node)) return `${ofNode(node.elementType)}[]`;
  if (ts.isTypeLiteralNode(node)) return object(keys(node.members));
  if (ts.isTypeReferenceNode(node) && node.typeArguments) {
    return `${node.typeName.getText()}<${node.typeArguments.map(ofNode).join(", ")}>`;
  }
  return node.getText();
}

function keys(members: ts.NodeArray<ts.TypeElement>): [string, boolean, string][] {
  return members.map((member) => {
    assert(ts.isPropertySignature(member) && member.type, member.getText());
    return [member.name.getText(), !member.questionToken, ofNode(member.type)];
  });
}

function ofInterface(name: string): [string, boolean, string][] {
  const found = interfaces.get(name);
  assert(found, `src/wire.ts has no ${name}`);
  const bases = (found.heritageClauses ?? []).flatMap((clause) => clause.types.map((type) => type.getText()));
  return [...bases.flatMap(ofInterface), ...keys(found.members)];
}

const names = new Map(Object.keys(schemas).map((name) => [RENAMED[name] ?? name, name]));

for (const name of interfaces.keys()) {
  test(`${name} is as the API describes it`, () => {
    const schema = schemas[names.get(name) ?? ""];
    assert(schema, `docs/openapi.json has no ${name}`);
    assert.equal(object(ofInterface(name)), ofSchema(schema));
  });
}

test("there are types for all that the native API's executions, sessions and files carry", () => {
  const wanted = ["Egress", "Execution", "ExecutionOutline", "ExecutionRequest", "Executions", "File", "Files", "OpenedSession", "Opening"];
  wanted.push("Pool", "Pools", "Problem", "Raised", "Session", "SessionDetail", "SessionSecret", "Shown", "Size", "Stop", "Terminal");
  for (const name of wanted) assert(interfaces.has(RENAMED[name] ?? name), name);
});
