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

// What a message is named after where that is not its schema.
const kinds = { accepted: 'response', chunk: 'response', final: 'response', whole: 'response', error: 'failure' }
const lists = ['bare', 'error_codes', 'error_codes_1_1', 'requests_refused', 'topic_forget', 'topics', 'topics_pool']

// By the longest run of words that names one: ota_state_probing is an ota-state.
function judgeOf (name) {
  const words = name.split('_')
  if (words[0] === 'request') return judges[`${words[1]}-request`]
  for (let n = words.length; n > 0; n--) {
    const kind = words.slice(0, n).join('-')
    if (judges[kinds[kind] ?? kind]) return judges[kinds[kind] ?? kind]
  }
}

let failed = 0
let judged = 0
for (const file of list('tests', 'wire', 'v1')) {
  const name = path.basename(file, '.json')
  if (lists.includes(name)) continue
  const judge = judgeOf(name)
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
