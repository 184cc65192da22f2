// Colours of Okabe and Ito; with the dashes no two lines look alike without
// colour either.
const COLORS = [
  '#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00'];
const DASHES = ['', '7 3', '2 3', '9 3 2 3'];
const MAIN_CURVES = ['loss', 'win_rate', 'kl', 'length'];
const WIDTH = 400;
const HEIGHT = 220;
const LEFT = 48;
const BOTTOM = 34;

const lineStyle = index => ({
  stroke: COLORS[index % COLORS.length],
  'stroke-dasharray': DASHES[Math.floor(index / COLORS.length + index) % 4],
  'stroke-width': 2,
  fill: 'none',
});

function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].find(s => s * power >= rough) * power;
  const first = Math.ceil(low / size - 1e-9);
  return Array.from(
    {length: Math.floor(high / size + 1e-9) - first + 1},
    (_, n) => (first + n) * size);
}

const short = x => Math.abs(x) >= 1e4 || (x && Math.abs(x) < 1e-3) ?
  x.toExponential(1) : String(Number(x.toPrecision(4)));

function range(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low) * 0.04 || Math.abs(low) * 0.1 || 1;
  return [low - room, high + room];
}

// The frame of a figure with its grid, and the maps from data to pixels.
function frame(points, xLabel, label) {
  const [left, right] = range(points.map(([x]) => x));
  const [bottom, top] = range(points.map(([, y]) => y));
  const x = v => LEFT + (v - left) / (right - left) * (WIDTH - LEFT - 8);
  const y = v => (HEIGHT - BOTTOM) * (1 - (v - bottom) / (top - bottom)) + 4;
  const svg = element('svg', {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': label});
  for (const v of ticks(bottom, top)) {
    svg.append(
      element('line', {class: 'grid', x1: LEFT, x2: WIDTH, y1: y(v), y2: y(v)}),
      element('text', {
        x: LEFT - 6, y: y(v) + 4, 'text-anchor': 'end'}, short(v)));
  }
  for (const v of ticks(left, right)) {
    svg.append(element(
      'text', {x: x(v), y: HEIGHT - 14, 'text-anchor': 'middle'}, short(v)));
  }
  svg.append(element(
    'text', {x: WIDTH, y: HEIGHT - 1, 'text-anchor': 'end'}, xLabel));
  return {svg, x, y};
}

// A metric of every run; pointer or arrow keys read the values at a step.
function curve(metric, names, runs) {
  const lines = names.map((name, index) => ({
    name, index,
    points: (runs[name].metrics[metric] ?? []).filter(([, v]) => v !== null),
  })).filter(line => line.points.length);
  const all = lines.flatMap(line => line.points);
  if (!all.length) return null;
  const {svg, x, y} = frame(all, 'step', `${words(metric)} by step`);
  for (const {name, index, points} of lines) {
    const d = points.map(([s, v], n) =>
      `${n ? 'L' : 'M'}${x(s).toFixed(1)},${y(v).toFixed(1)}`).join('');
    svg.append(element('path', {d, ...lineStyle(index)},
      element('title', {}, name)));
    if (points.length === 1) {
      svg.append(element('circle', {
        cx: x(points[0][0]), cy: y(points[0][1]), r: 3,
        fill: COLORS[index % COLORS.length]}));
    }
  }
  const cross = element(
    'line', {class: 'cross', y1: 4, y2: HEIGHT - BOTTOM + 4});
  const readout = element('div', {class: 'readout', role: 'status'});
  const steps = [...new Set(all.map(([s]) => s))].sort((a, b) => a - b);
  let at = steps.length;
  const read = index => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    cross.setAttribute('x1', x(steps[at]));
    cross.setAttribute('x2', x(steps[at]));
    svg.append(cross);
    readout.textContent = `step ${steps[at]}: ` + lines.flatMap(line => {
      const point = line.points.find(([s]) => s === steps[at]);
      return point ? [`${line.name} ${short(point[1])}`] : [];
    }).join(', ');
  };
  svg.setAttribute('tabindex', '0');
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const pixel = (event.clientX - box.left) / box.width * WIDTH;
    const away = steps.map(s => Math.abs(x(s) - pixel));
    read(away.indexOf(Math.min(...away)));
  });
  svg.addEventListener('keydown', event => {
    if (event.key === 'ArrowLeft') read(at - 1);
    if (event.key === 'ArrowRight') read(at + 1);
  });
  return element('figure', {},
    element('figcaption', {}, words(metric)), svg, readout);
}

// Win rate against the first policy over KL: what a win costs.
function frontier({policies, judges, win_rate: rates, kl}) {
  const points = policies.flatMap((name, i) => typeof kl?.[name] === 'number' ?
    [{name, i, point: [kl[name], rates[judges[0]][i][0]]}] : []);
  if (points.length < 2) return [];
  const {svg, x, y} = frame(
    points.map(({point}) => point), 'KL to the reference, nats', 'frontier');
  for (const {name, i, point: [cost, rate]} of points) {
    const right = x(cost) > WIDTH * 0.7;
    svg.append(
      element('circle', {
        cx: x(cost), cy: y(rate), r: 5, fill: COLORS[i % COLORS.length]}),
      element('text', {
        x: x(cost) + (right ? -9 : 9), y: y(rate) + 4,
        'text-anchor': right ? 'end' : 'start'}, name));
  }
  const title = `Win rate over ${policies[0]} (${words(judges[0])}) against KL`;
  return [element('figcaption', {}, title), svg];
}

function drawFigures(results, runs) {
  byId('frontier').append(...frontier(results));
  const names = Object.keys(runs);
  byId('legend').append(...names.map((name, index) => element('li', {},
    element('svg', {viewBox: '0 0 34 10', 'aria-hidden': 'true'},
      element('path', {d: 'M0,5L34,5', ...lineStyle(index)})), ' ', name)));
  const metrics = [...new Set(
    names.flatMap(name => Object.keys(runs[name].metrics)))].sort();
  const draw = list =>
    list.map(name => curve(name, names, runs)).filter(figure => figure);
  byId('curves').append(
    ...draw(MAIN_CURVES.filter(name => metrics.includes(name))));
  const others = metrics.filter(name => !MAIN_CURVES.includes(name));
  const more = byId('more-curves');
  more.hidden = !others.length;
  more.addEventListener('toggle', () => {
    const figures = more.querySelector('.figures');
    if (!figures.childElementCount) figures.append(...draw(others));
  });
}
