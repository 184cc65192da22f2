// Draws the tables of the report.
function tableRows(table, header, rows) {
  const cells = header.map(name => element('th', {scope: 'col'}, name));
  table.replaceChildren(
    element('thead', {}, element('tr', {}, ...cells)),
    element('tbody', {}, ...rows.map(([name, ...row]) =>
      element('tr', {}, element('th', {scope: 'row'}, name), ...row))));
}

const bounds = ([low, high], digits) =>
  element('small', {}, `${number(low, digits)} to ${number(high, digits)}`);

const INTERVALS = {
  win_rate: 'interval',
  mean_preference: 'mean_preference_interval',
  length_controlled_win_rate: 'length_controlled_interval',
};

function drawMatrix() {
  const judge = byId('judge').value;
  const quantity = byId('quantity').value;
  const rows = policies.map((row, i) => [row, ...policies.map((column, k) => {
    const value = results[quantity][judge]?.[i][k];
    if (i === k || typeof value !== 'number') {
      return element('td', {class: 'self'}, number(value));
    }
    const away = Math.round(Math.min(1, Math.abs(value - 0.5) * 2) * 100);
    const hue = value >= 0.5 ? '--win' : '--loss';
    const interval = results[INTERVALS[quantity]]?.[judge]?.[i][k];
    const label = element('button', {
      title: `${row} over ${column}: show the prompts`,
      onclick: () => showWins(row, column),
    }, number(value));
    if (interval) label.append(bounds(interval));
    const style = `background: color-mix(in srgb, var(${hue}) ${away}%, ` +
      'var(--ground))';
    return element('td', {style}, label);
  })]);
  tableRows(byId('matrix'), ['row over column', ...policies], rows);
  byId('matrix-files').replaceChildren(files(`win_rate_${judge}`));
}

// These columns come before the measures of a task.
const FIRST = ['kl', 'length', 'entropy', 'eos_rate'];

function drawMeasures() {
  const measures = Object.keys(results).filter(name => {
    const value = results[name];
    if (!value || Array.isArray(value) || typeof value !== 'object') return false;
    const names = Object.keys(value);
    return names.every(name => policies.includes(name)) &&
      names.some(name => typeof value[name] === 'number');
  });
  const place = name => (FIRST.indexOf(name) + FIRST.length + 1) %
    (FIRST.length + 1);
  measures.sort((a, b) => place(a) - place(b) || a.localeCompare(b));
  const paired = results.paired_difference ?? {};
  const rows = policies.map(policy => [policy, ...measures.map(name => {
    const cell = element('td', {}, number(results[name][policy]));
    const difference = paired[name]?.[policy];
    if (difference) {
      const [value, low, high] = difference.map(x => number(x, 2));
      cell.append(element('small', {}, `(${value}: ${low} to ${high})`));
    }
    return cell;
  })]);
  tableRows(byId('measures'), ['policy', ...measures.map(words)], rows);
}

// Draws {pairs: {judge: [share, low, high, number of pairs]}} as a table. Shares
// without a set of pairs belong to the pairs that are compared.
function drawShares(table, shares = {}) {
  if (Object.values(shares).some(Array.isArray)) shares = {compared: shares};
  const sets = Object.keys(shares);
  const names = [...new Set(sets.flatMap(set => Object.keys(shares[set])))];
  table.parentElement.hidden = !sets.length;
  tableRows(table, [table.dataset.corner, ...names.map(words)],
    sets.map(set => [words(set), ...names.map(judge => {
      if (!shares[set][judge]) return element('td', {}, '–');
      const [value, low, high, count] = shares[set][judge];
      const cell = element('td', {}, number(value), bounds([low, high]));
      if (count) cell.append(element('small', {}, `${count} pairs`));
      return cell;
    })]));
  return sets.length;
}

// Draws the policies that have several seeds: each seed, the mean, and its
// t-interval. Each pair has one row, and the winner comes first.
function drawSeeds() {
  const rows = results.seeds?.[byId('judge').value] ?? [];
  const turned = ({policy, over}) =>
    rows.findIndex(row => row.policy === over && row.over === policy);
  const found = rows.filter((row, place) => place < turned(row))
    .map(row => row.mean < .5 ? rows[turned(row)] : row);
  byId('seeds').parentElement.hidden = !found.length;
  tableRows(byId('seeds'),
    ['over seeds', 'over', 'mean', '95 % t-interval over seed means',
      'each seed (rows) over each seed'],
    found.map(row => {
      const interval = row.t_interval_over_seed_means;
      const rates = row.win_rates.map(
        each => each.map(x => number(x)).join(' ')).join(' / ');
      return [row.policy, ...[row.over, number(row.mean),
        interval.map(x => number(x)).join(' to '), rates]
        .map(text => element('td', {}, text))];
    }));
}

// Draws the Nash averaging of the win rates (arXiv 1806.02643).
function drawNash() {
  const found = results.nash_averaging?.[byId('judge').value];
  byId('nash').parentElement.hidden = !found;
  if (!found) return;
  tableRows(byId('nash'), ['Nash averaging', 'weight', 'skill'],
    policies.filter(name => name in found.weights).map(name => [name,
      element('td', {}, number(found.weights[name])),
      element('td', {}, number(found.skills[name]))]));
}

function drawJudged() {
  drawMatrix();
  drawSeeds();
  drawNash();
}

// Draws every run of a sweep with the win rate on which selection is based.
function drawSweep() {
  const swept = sweep.runs ?? [];
  byId('sweep').hidden = !swept.length;
  if (!swept.length) return;
  byId('sweep-note').textContent = `For each algorithm, the setting with the ` +
    `highest win rate by ${words(sweep.judge)} on ${sweep.splits[0]} prompts ` +
    `is selected; the win rate is the mean over seeds ` +
    `${sweep.seeds.join(', ')}. The win rates above are on ` +
    `${sweep.splits[1]} prompts. For a run with several checkpoints, the best ` +
    `one is shown.`;
  tableRows(byId('sweep-runs'),
    ['run', 'selected', 'win rate', 'over'], swept.map(run => {
      const rates = Object.values(run.measured);
      const best = rates.sort((a, b) => b[0] - a[0])[0];
      const cell = element('td', {}, number(best?.[0]));
      if (best) cell.append(bounds(best.slice(1)));
      return [run.name, element('td', {}, run.selected ? '✓' : ''), cell,
        element('td', {}, run.against)];
    }));
}
