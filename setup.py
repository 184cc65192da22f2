"""Installs ipo_md; constraints.txt has the versions that were tested."""

import pathlib

import setuptools

setuptools.setup(
  name='ipo_md',
  version='0.1.0',
  description='Online preference optimisation of language models in JAX',
  long_description=pathlib.Path(__file__).with_name('README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # gin files and tasks lie beside the package in a checkout and inside of it in
  # a wheel (core.gin_config.root), so that no top-level `tasks` is installed.
  packages=[
    *setuptools.find_packages(include=['ipo_md*']),
    'ipo_md.bundled.gin',
    *(
      f'ipo_md.bundled.{name}'
      for name in setuptools.find_packages(include=['tasks*'])
    ),
  ],
  package_dir={
    'ipo_md.bundled.gin': 'gin',
    'ipo_md.bundled.tasks': 'tasks',
  },
  package_data={
    'ipo_md': ['py.typed'],
    'ipo_md.report': ['*.html', '*.css', '*.js'],
    'ipo_md.bundled.gin': ['**/*.gin', '*.md'],
    'ipo_md.bundled.tasks.mini_tldr': ['*.model'],
  },
  install_requires=[
    'absl-py',
    'clu',
    'etils[epath]',
    'flax',
    'gin-config',
    'grain',
    'jax',
    'jinja2>=3.1.6',  # earlier sandboxes can be left
    'matplotlib',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'rich',
    'rouge-score',
    'safetensors>=0.8',
    'scipy',
    'sentencepiece',
    'seqio',
    'tensorboard',
    'tensorflow',
    'tensorflow-datasets',
    'tensorflow-text',
    'tokenizers',
    'urllib3',
  ],
  extras_require={
    'tpu': ['jax[tpu]'],
    'gpu': ['jax[cuda13]'],
    'parquet': ['pyarrow'],
    'gguf': ['gguf'],
    'math': ['math-verify'],
    'wandb': ['wandb'],
    'docs': [
      'ipykernel',
      'mkdocs-material',
      'mkdocstrings[python]',
      'nbclient',
      'nbformat',
    ],
    'test': [
      'dill',
      'gguf',
      'hypothesis',
      'importlib_resources',
      'math-verify',
      'pyright[nodejs]==1.1.414',
      'pytest',
      'pytest-xdist',
      'ruff',
      'wandb',
    ],
  },
)
