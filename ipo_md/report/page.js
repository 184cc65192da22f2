const data = JSON.parse(document.getElementById('data').textContent);
const {results, runs, sweep} = data;
const {policies, judges} = results;
const byId = id => document.getElementById(id);
const words = name => name.replaceAll('_', ' ');
const number = (x, digits = 3) =>
  typeof x === 'number' ? x.toFixed(digits) : '–';

// Makes an element. Texts from the data become text nodes, never HTML.
function element(tag, attributes = {}, ...children) {
  const svg = ['svg', 'g', 'path', 'line', 'text', 'title'];
  const node = svg.includes(tag) ?
    document.createElementNS('http://www.w3.org/2000/svg', tag) :
    document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function options(select, values, label = words) {
  select.replaceChildren(
    ...values.map(value => element('option', {value}, label(value))));
}

function showWins(row, column) {
  byId('row').value = row;
  byId('column').value = column;
  byId('outcome').value = 'win';
  applyFilters();
  byId('prompts').scrollIntoView();
  byId('prompt').focus({preventScroll: true});
}

const parsed = [];
const total = data.pages.reduce((sum, size) => sum + size, 0);
let matches = [];
let current = 0;

function entry(index) {
  let page = 0;
  for (; index >= data.pages[page]; page++) index -= data.pages[page];
  parsed[page] ??= JSON.parse(byId(`page-${page}`).textContent);
  return parsed[page][index];
}

// Returns P(row > column) for one prompt, or undefined if the pair was not
// judged. A line holds the upper triangle of the pairs.
function preference(line, judge, row, column) {
  const values = line.preference?.[judge];
  if (!values || row === column) return 0.5;
  const i = Math.min(row, column);
  const k = Math.max(row, column);
  const p = values[i * policies.length - i * (i + 1) / 2 + k - i - 1];
  if (typeof p !== 'number') return undefined;
  return row < column ? p : 1 - p;
}

function applyFilters() {
  const text = byId('text').value.toLowerCase();
  const outcome = {win: 1, tie: 0, loss: -1}[byId('outcome').value];
  const row = policies.indexOf(byId('row').value);
  const column = policies.indexOf(byId('column').value);
  const judge = byId('judge').value;
  const holds = line =>
    (outcome === undefined ||
     Math.sign(preference(line, judge, row, column) - 0.5) === outcome) &&
    (!text || [line.prompt, ...Object.values(line.completions)
      .map(completion => completion.text)]
      .some(each => each.toLowerCase().includes(text)));
  const all = Array.from({length: total}, (_, index) => index);
  const filtered = text || outcome !== undefined;
  matches = filtered ? all.filter(index => holds(entry(index))) : all;
  const more = data.leftOut ?
    `; ${data.leftOut} more in completions.jsonl` : '';
  byId('found').textContent =
    `${matches.length} of ${total} prompts${filtered ? ' match' : ''}${more}`;
  if (!matches.includes(current) && matches.length) show(matches[0]);
  else drawPrompt();
}

function show(index) {
  current = index;
  history.replaceState(null, '', `#prompt=${index}`);
  drawPrompt();
}

function step(direction) {
  const next = direction > 0 ?
    matches.find(index => index > current) :
    matches.findLast(index => index < current);
  if (next !== undefined) show(next);
}

function drawPrompt() {
  byId('number').value = current;
  byId('permanent').href = `#prompt=${current}`;
  const article = byId('prompt');
  if (!total || !matches.length) {
    article.replaceChildren(element('p', {}, 'No prompt matches.'));
    return;
  }
  const line = entry(current);
  const chosen = new Set([...byId('shown').querySelectorAll('input:checked')]
    .map(box => box.value));
  const cards = Object.keys(line.completions)
    .sort((a, b) => policies.indexOf(a) - policies.indexOf(b))
    .filter(policy => chosen.has(policy))
    .map(policy => card(line, policy));
  article.replaceChildren(
    element('div', {class: 'prompt'}, line.prompt),
    element('div', {class: 'cards'}, ...cards));
}

function card(line, policy) {
  const {text, score = {}} = line.completions[policy];
  const terms = Object.entries(score);
  const i = policies.indexOf(policy);
  const k = policies.indexOf(byId('column').value);
  if (i !== k) {
    for (const judge of judges.filter(name => line.preference?.[name])) {
      const p = preference(line, judge, i, k);
      if (p === undefined) continue;
      terms.push([`over ${policies[k]}, ${words(judge)}`, p]);
    }
  }
  const list = terms.flatMap(([name, value]) => [
    element('dt', {}, words(name)),
    element('dd', {}, typeof value === 'number' && !Number.isInteger(value) ?
      number(value) : String(value))]);
  return element('section', {class: 'card'}, element('h3', {}, policy),
    element('p', {}, text || '(empty)'), element('dl', {}, ...list));
}

function followHash() {
  const match = /^#prompt=(\d+)$/.exec(location.hash);
  if (!match || Number(match[1]) >= total) return;
  current = Number(match[1]);
  if (!matches.includes(current)) {
    byId('text').value = byId('outcome').value = '';
    applyFilters();
  }
  drawPrompt();
  byId('prompts').scrollIntoView();
}

byId('summary').textContent = `${policies.length} policies, ` +
  `${judges.length} judges, ${results.prompts} held-out prompts.`;
options(byId('judge'), judges);
options(byId('row'), policies, name => name);
options(byId('column'), policies, name => name);
byId('row').value = policies.at(-1);
policies.forEach(policy => byId('shown').append(element('label', {},
  element('input', {type: 'checkbox', value: policy, checked: ''}), ' ',
  policy)));
byId('gin').append(...Object.entries(runs).map(([name, run]) => {
  const {commit, ...packages} = run.versions;
  const versions = Object.entries(packages).map(pair => pair.join(' '));
  return element('details', {}, element('summary', {}, name),
    element('p', {}, `commit ${commit ?? 'unknown'}; ${versions.join(', ')}`),
    element('pre', {tabindex: '0'}, run.gin || '(no gin file)'));
}));
byId('runs').hidden = byId('training').hidden = !Object.keys(runs).length;

byId('judge').onchange = () => { drawJudged(); applyFilters(); };
byId('quantity').onchange = drawMatrix;
byId('filters').oninput = applyFilters;
byId('shown').onchange = drawPrompt;
byId('previous').onclick = () => step(-1);
byId('next').onclick = () => step(1);
byId('number').onchange = event => {
  location.hash = `#prompt=${event.target.value}`;
};
addEventListener('hashchange', followHash);
addEventListener('keydown', event => {
  const typing = event.target.closest?.('input, select, textarea');
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === 'n') step(1);
  if (event.key === 'p') step(-1);
});

for (const option of [...byId('quantity').options]) {
  if (!results[option.value]) option.remove();
}
byId('more-curves').hidden =
  !data.figures.some(({place}) => place === 'other-curves');
byId('more-curves').ontoggle = drawFigures;
const judged = drawShares(byId('agreement'), results.agreement) +
  drawShares(byId('orders'), results.order_consistency) +
  drawShares(byId('each-other'), results.judge_agreement);
const warned = Object.entries({
  'compared policies': results.compared_judge_warnings ?? {},
  ...results.judge_warnings,
}).flatMap(([pairs, warnings]) => Object.entries(warnings).map(
  ([judge, text]) => element('p', {class: 'warning', role: 'alert'},
    `${judge} ${text} (${pairs})`)));
byId('judge-warnings').append(...warned);
byId('judges').hidden = !judged && !results.calibration && !warned.length;
drawJudged();
drawMeasures();
drawSweep();
drawLegend();
drawFigures();
for (const link of document.querySelectorAll('nav a')) {
  link.hidden = byId(link.hash.slice(1)).hidden;
}
applyFilters();
followHash();
