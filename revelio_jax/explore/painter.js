// A brush on the image. The opaque part is the mask. The field's value is the mask as the data URL of a PNG, or ''.
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d', {willReadFrequently: true});
const size = element.querySelector('[type=range]'), erase = element.querySelector('[type=checkbox]');
let last = null;

const place = event => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * canvas.width, (event.clientY - box.top) / box.height * canvas.height];
};
const stroke = (from, to) => {
  pen.globalCompositeOperation = erase.checked ? 'destination-out' : 'source-over';
  pen.strokeStyle = '#d6249f';
  pen.lineWidth = size.value / 100 * canvas.width;
  pen.lineCap = 'round';
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
};
const done = () => {
  const bytes = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  props.value = bytes.some((byte, i) => i % 4 === 3 && byte) ? canvas.toDataURL('image/png') : '';
  trigger('input');
};
const show = () => { canvas.parentElement.style.backgroundImage = props.image ? `url(${props.image})` : ''; };

canvas.addEventListener('pointerdown', event => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  stroke(last, last);
});
canvas.addEventListener('pointermove', event => {
  if (!last) return;
  const next = place(event);
  stroke(last, next);
  last = next;
});
for (const end of ['pointerup', 'pointercancel'])
  canvas.addEventListener(end, () => { if (last) { last = null; done(); } });
element.querySelector('button').addEventListener('click', () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  done();
});
watch('image', show);
show();
