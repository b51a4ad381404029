// docs/contract/schemas under Ajv, the validator of most JavaScript tools, in strict mode; and each pinned
// message of tests/wire/v1 against its schema.
'use strict'

const fs = require('fs')
const path = require('path')
const Ajv = require('ajv/dist/2020')

const repository = path.join(__dirname, '..', '..')
const read = (...names) => JSON.parse(fs.readFileSync(path.join(repository, ...names), 'utf8'))
const list = (...names) => fs.readdirSync(path.join(repository, ...names))

// Strict but for two habits of ours: null beside another type, and conditions that require a key which the
// schema above them describes.
const ajv = () => new Ajv({ strict: true, allowUnionTypes: true, strictRequired: false, allErrors: true })

const judges = {}
for (const file of list('docs', 'contract', 'schemas')) {
  judges[path.basename(file, '.json')] = ajv().compile(read('docs', 'contract', 'schemas', file))
}

const kinds = {
  accepted: 'response', chunk: 'response', final: 'response', whole: 'response',
  tokens: 'tokens', error: 'failure', status: 'status', info: 'info', models: 'models', state: 'state'
}
const lists = ['bare', 'error_codes', 'requests_refused', 'topics', 'topics_pool']

let failed = 0
let judged = 0
for (const file of list('tests', 'wire', 'v1')) {
  const name = path.basename(file, '.json')
  if (lists.includes(name)) continue
  const [word, op] = name.split('_')
  const judge = judges[word === 'request' ? `${op}-request` : kinds[word]]
  judged += 1
  if (!judge) {
    failed += 1
    console.log(`FAILED  ${name}: no schema`)
  } else if (!judge(read('tests', 'wire', 'v1', file))) {
    failed += 1
    console.log(`FAILED  ${name}: ${ajv().errorsText(judge.errors)}`)
  }
}
console.log(`${judged} pinned messages, ${failed} not as their schemas say`)
process.exit(failed > 0 || judged === 0 ? 1 : 0)
