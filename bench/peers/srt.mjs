// Wraps commands for the sandbox-runtime script: one JSON string a line in, the wrapped command out in the same form.
import { createInterface } from 'node:readline'
import { SandboxManager } from '@anthropic-ai/sandbox-runtime'

await SandboxManager.initialize({
  network: { allowedDomains: [], deniedDomains: [] },
  filesystem: { denyRead: [], allowWrite: ['/tmp'], denyWrite: [] },
})
console.log(JSON.stringify('ready'))
for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await SandboxManager.wrapWithSandbox(JSON.parse(line))))
}
await SandboxManager.reset()
process.exit(0)
